// Two pictures in; a dialog with both side by side, which is better and how sure that is, out.

import { comparePictures } from "./api.js";
import { noPicture } from "./cards.js";
import { byId, element } from "./dom.js";
import { percent, signed, titled } from "./format.js";
import { readable } from "./kinds.js";
import { value } from "./score.js";
import { tasksOf } from "./state.js";

/** Shows the dialog, and asks the server. Resolves when it has answered. */
export async function compare(a, b, model, gate) {
  const dialog = byId("compare");
  const abort = new AbortController();
  const urls = [a, b].map((item) => URL.createObjectURL(item.file));
  const close = element("button", { type: "button", onclick: () => dialog.close() }, "Close");
  const answer = element("div", { class: "answer" }, element("p", {}, "Comparing…"));
  const said = element("p", { class: "unseen", role: "status" });
  dialog.replaceChildren(
    element("div", { class: "heading" }, element("h2", { id: "compare-title" }, "A and B side by side"), close),
    element("div", { class: "pair" }, side("A", a, urls[0]), side("B", b, urls[1])),
    answer,
    said,
  );
  const closed = () => {
    abort.abort();
    urls.forEach(URL.revokeObjectURL);
    dialog.replaceChildren();
  };
  const say = (text) => {
    answer.replaceChildren(element("p", { class: "error" }, text));
    said.textContent = text;
  };
  dialog.addEventListener("close", closed, { once: true });
  dialog.showModal();
  try {
    const told = await gate.through(() => ask(a, b, model, abort.signal, say), abort.signal);
    answer.replaceChildren(...verdicts(told, model));
    said.textContent = told.comparisons.map(inWords).join(" ");
  } catch (error) {
    if (!abort.signal.aborted) say(error.message);
  }
}

/** `say` hears of trouble at once: the notice on the page is behind the dialog. */
async function ask(a, b, model, signal, say) {
  try {
    for (const { file } of [a, b]) await readable(file);
    return await comparePictures(a, b, tasksOf(model, "picture"), model.id, signal);
  } catch (error) {
    if (!signal.aborted) say(`${error.message} The page tries again.`);
    throw error;
  }
}

function verdicts({ rows, comparisons = [] }, model) {
  if (!comparisons.length) throw new Error(rows.find((row) => row.error)?.error ?? "The server compared nothing.");
  return comparisons.map((one) => verdict(one, rows.filter((row) => row.task === one.task), model));
}

function side(letter, { name, file }, url) {
  const frame = element("div", { class: "frame" });
  const missing = () => frame.replaceChildren(noPicture(file.name));
  frame.append(element("img", { src: url, alt: `${letter}: ${name}`, decoding: "async", onerror: missing }));
  return element("figure", {}, frame, element("figcaption", {}, element("b", {}, letter), " ", name));
}

const inWords = ({ task, probability_a_better: sure }) =>
  `${titled(task)}: A is better with a probability of ${percent(sure)}.`;

/** One task: the probability as words and as a bar, then both scores and all levels. */
function verdict({ task, difference, probability_a_better: sure }, [a, b], model) {
  return element(
    "section",
    { "aria-label": titled(task) },
    element("h3", {}, titled(task)),
    element(
      "p",
      { class: "sure" },
      element("span", {}, "A is better with a probability of "),
      element("strong", {}, percent(sure)),
    ),
    balance(sure),
    element("p", { class: "note" }, `Difference of the scores, A − B: ${signed(difference)}`),
    table(a, b, model),
  );
}

function balance(sure) {
  const part = element("span", {});
  part.style.width = `${100 * sure}%`;
  return element("div", { class: "balance", "aria-hidden": "true" }, "A", element("div", {}, part), "B");
}

function table(a, b, model) {
  const head = ["", "A", "B"].map((text) => element("th", { scope: "col" }, text));
  const scores = [a, b].map((row) => element("td", {}, value(row, model)));
  const words = [a, b].map((row) => element("td", {}, element("span", { class: "level" }, row.level)));
  const line = (name, cells) => element("tr", {}, element("th", { scope: "row" }, name), ...cells);
  const levels = model.levels.map((level) => line(level, [a, b].map((row) => share(row.probabilities[level]))));
  return element(
    "table",
    {},
    element("thead", {}, element("tr", {}, ...head)),
    element("tbody", {}, line("score", scores), line("level", words), ...levels),
  );
}

function share(probability) {
  const fill = element("span", {});
  fill.style.width = `${100 * probability}%`;
  const bar = element("span", { class: "bar", "aria-hidden": "true" }, fill);
  return element("td", {}, element("span", { class: "with-bar" }, bar, element("span", {}, percent(probability))));
}
