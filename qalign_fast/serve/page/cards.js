// An item in, its card out: a picture, the scores or the error, and what can be done with it.

import { timeline } from "./chart.js";
import { byId, element } from "./dom.js";
import { counted } from "./format.js";
import { suffixOf } from "./kinds.js";
import { scoreBlock } from "./score.js";
import { thumbnail } from "./thumbnails.js";

/**
 * @typedef {import("./state.js").Item} Item
 * @typedef {{remove: (item: Item) => void, again: (item: Item) => void, compare: (item: Item) => void}} Actions
 */

export class Card {
  #item;
  #actions;
  #frame = element("div", { class: "frame" });
  #body = element("div", { class: "body" });
  #article;
  #again;
  #compare;
  #drawn = null; // the rows and the error that stand there
  #url = "";
  #abort = new AbortController();

  /** @param {Item} item @param {Actions} actions */
  constructor(item, actions) {
    this.#item = item;
    this.#actions = actions;
    const title = `card-${item.id}`;
    this.#again = this.#button("Try again", () => {
      this.#article.focus(); // the button goes
      actions.again(item);
    });
    this.#compare = this.#button("Compare", () => actions.compare(item));
    const remove = this.#button("Remove", () => {
      const next = this.node.nextElementSibling ?? this.node.previousElementSibling;
      actions.remove(item);
      (next?.firstElementChild ?? byId("results")).focus({ preventScroll: true });
    });
    remove.className = "quiet";
    this.#article = element(
      "article",
      { class: "card", "aria-labelledby": title, tabindex: -1 },
      this.#frame,
      element("h3", { id: title, title: item.name }, item.name),
      this.#body,
      element("div", { class: "actions" }, this.#again, this.#compare, remove),
    );
    this.node = element("li", {}, this.#article);
  }

  /** Shows what the item has become. */
  update(state) {
    const { status, rows, error, kind } = this.#item;
    this.#article.dataset.status = status;
    this.#again.hidden = status !== "failed";
    this.#compare.hidden = status !== "done" || kind === "clip";
    this.#showPick(state.picked);
    const drawn = [status, rows, error];
    if (this.#drawn?.every((value, i) => value === drawn[i])) return;
    this.#drawn = drawn;
    this.#body.replaceChildren(...content(this.#item, state.model));
  }

  /** Makes the small picture; the list asks for it when the card comes near to what is seen. */
  async showPicture() {
    const blob = await thumbnail(this.#item.file, this.#abort.signal);
    if (this.#abort.signal.aborted) return;
    const placeholder = () => this.#frame.replaceChildren(noPicture(this.#item.file.name));
    if (!blob) return placeholder();
    this.#url = URL.createObjectURL(blob);
    const picture = element("img", { src: this.#url, alt: "", decoding: "async", onerror: placeholder });
    this.#frame.replaceChildren(picture);
  }

  /** Gives back what the picture holds. */
  close() {
    this.#abort.abort();
    URL.revokeObjectURL(this.#url);
    this.node.remove();
  }

  #button(text, onclick) {
    return element("button", { type: "button", "aria-label": `${text}: ${this.#item.name}`, onclick }, text);
  }

  #showPick(picked) {
    const isPicked = picked === this.#item;
    const text = isPicked ? "Picked as A" : picked ? "Compare with A" : "Compare";
    if (this.#compare.textContent !== text) this.#compare.textContent = text;
    this.#compare.setAttribute("aria-label", `${text}: ${this.#item.name}`);
    this.#compare.setAttribute("aria-pressed", String(isPicked));
    this.#article.classList.toggle("picked", isPicked);
  }
}

/** In place of a picture that the browser cannot show: its kind of file. */
export function noPicture(name) {
  const kind = suffixOf(name).slice(0, 5).toUpperCase() || "file";
  return element("p", { class: "no-picture" }, element("b", {}, kind), "no preview in this browser");
}

function content({ status, rows, error, timeline: points, kind }, model) {
  if (status === "failed") return [element("p", { class: "error" }, error)];
  if (status !== "done") return [element("p", { class: "pending" }, status === "scoring" ? "Scoring…" : "Waiting")];
  const warnings = new Set(rows.flatMap((row) => row.warnings ?? []));
  const frames = rows.find((row) => row.frames)?.frames;
  const tasks = rows.filter((row) => row.score !== null).map((row) => row.task);
  return [
    ...rows.map((row) => scoreBlock(row, model)),
    ...(kind === "clip" && frames ? [element("p", { class: "note" }, `Clip, ${counted(frames, "frame")} scored`)] : []),
    ...(points.length ? [timeline(points, tasks, model.scale)] : []),
    ...[...warnings].map((warning) => element("p", { class: "note" }, warning)),
  ];
}
