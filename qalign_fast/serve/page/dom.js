// Names, attributes and children in, elements out. Text is only ever set as text: file names are not trusted.

const SVG = "http://www.w3.org/2000/svg";

/**
 * An HTML element. `on...` are listeners, `data` is its dataset, booleans are attributes without a value.
 * @param {string} name
 * @param {Record<string, any>} [attributes]
 * @param {...(Node | string | null)} children
 * @returns {any} the element: an HTMLInputElement for "input", and so on
 */
export function element(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}

/** An SVG element. */
export function svg(name, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, name), attributes, children);
}

/** The element of the page with this id. */
export function byId(id) {
  return /** @type {any} */ (document.getElementById(id));
}

/** Text for screen readers alone. */
export function unseen(text) {
  return element("span", { class: "unseen" }, text);
}

function fill(made, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (key === "data") Object.assign(made.dataset, value);
    else if (value === true) made.setAttribute(key, "");
    else if (value !== false && value !== null) made.setAttribute(key, String(value));
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}
