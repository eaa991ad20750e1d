// What the user should know of the server in, a line above the results out: it is busy, loading or away, or wants a
// key.

import { hasKey, useKey } from "./api.js";
import { byId, element } from "./dom.js";
import { counted, titled } from "./format.js";

let timer = 0;

/**
 * Shows what calls wait for; nothing for null.
 * @param {{kind: string, message: string, seconds: number|null}|null} trouble
 * @param {() => void} retry
 */
export function showTrouble(trouble, retry) {
  clearInterval(timer);
  remove("trouble");
  if (!trouble) return;
  if (trouble.kind === "key") return put("trouble", keyForm(trouble.message, retry));
  const countdown = element("span", { "aria-hidden": "true" });
  count(countdown, trouble.seconds);
  const again = element("button", { type: "button", onclick: retry }, "Try now");
  const said = `${sentence(trouble.message)} Nothing is lost: the page tries again. `;
  const text = element("p", { role: "status" }, said, countdown);
  put("trouble", element("div", {}, text, again));
}

/** An error that trying again does not mend by itself. */
export function showFailure(message, retry) {
  const again = element("button", { type: "button", onclick: () => (remove("failure"), retry()) }, "Try again");
  put("failure", element("div", {}, element("p", { role: "alert" }, message), again));
}

/** What was removed, with a button that brings it back. */
export function showRemoved(number, undo) {
  const back = element("button", { type: "button", onclick: () => (remove("removed"), undo()) }, "Undo");
  const text = element("p", { role: "status" }, `${counted(number, "result")} removed.`);
  put("removed", element("div", {}, text, back));
}

export const hideRemoved = () => remove("removed");

/** The server's line, as a sentence. */
const sentence = (line) => titled(line).replace(/[^.]$/, "$&.");

/** Puts the whole seconds that are left into a node, each second. */
function count(node, seconds) {
  const end = performance.now() + 1000 * seconds;
  const show = () => {
    const left = Math.ceil((end - performance.now()) / 1000);
    node.textContent = left > 0 ? `In ${left} s.` : "Now.";
  };
  show();
  timer = setInterval(show, 1000);
}

function keyForm(message, retry) {
  const input = element("input", { type: "password", id: "key", autocomplete: "off", required: true });
  const before = hasKey() ? "The key was not taken. " : "";
  const said = element("p", { role: "alert" }, before + sentence(message));
  const submit = (event) => {
    event.preventDefault();
    const key = input.value.trim();
    if (!/^[\x21-\x7e]+$/.test(key)) {
      said.textContent = "A key has letters, digits and signs of ASCII alone, and no spaces.";
      return;
    }
    useKey(key);
    remove("trouble");
    retry();
  };
  return element(
    "form",
    { onsubmit: submit },
    said,
    element("label", { for: "key" }, "Key"),
    input,
    element("button", { class: "main" }, "Use this key"),
    element("p", { class: "note" }, "It is kept in this tab until the tab is closed."),
  );
}

function put(name, node) {
  remove(name);
  node.className = "notice";
  node.dataset.notice = name;
  byId("notices").append(node);
}

function remove(name) {
  document.querySelector(`[data-notice=${name}]`)?.remove();
}
