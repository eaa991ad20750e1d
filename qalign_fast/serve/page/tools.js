// The controls above the list: sort, filter, export and clear. They change the state's view, and show it.

import { byId, element } from "./dom.js";
import { save, rowsOf, toCsv, toJson } from "./export.js";
import { counted, titled } from "./format.js";
import { arrange, isFiltered, isFinished, isKept, scoreOf } from "./order.js";
import { tasksOf } from "./state.js";

/** @param {import("./state.js").State} state @param {() => void} clear */
export function listenToTools(state, clear) {
  const [sort, task, side, slider, number] = ["sort", "task", "side", "threshold", "threshold-number"].map(byId);
  byId("tools").addEventListener("submit", (event) => event.preventDefault());
  sort.addEventListener("change", () => state.look({ sort: sort.value }));
  task.addEventListener("change", () => state.look({ task: task.value }));
  side.addEventListener("change", () => {
    const [low, high] = state.model.scale;
    const from = isFiltered(state.view, [low, high]) ? state.view.threshold : side.value === "least" ? low : high;
    state.look({ side: side.value, threshold: from });
  });
  slider.addEventListener("input", () => state.look({ threshold: slider.valueAsNumber }));
  number.addEventListener("change", () => {
    const [low, high] = state.model.scale;
    const value = Number.isFinite(number.valueAsNumber) ? number.valueAsNumber : state.view.threshold;
    state.look({ threshold: Math.min(high, Math.max(low, value)) });
    number.value = String(state.view.threshold);
  });
  byId("clear").addEventListener("click", () => {
    clear();
    byId("results").focus({ preventScroll: true }); // the button goes
  });
  const shown = () => arrange(state.items, state.view, state.model.scale);
  const tasks = () => tasksOf(state.model, "picture");
  byId("export-csv").addEventListener("click", () => {
    save(toCsv(rowsOf(shown(), tasks()), state.model.levels), "scores.csv", "text/csv");
  });
  byId("export-json").addEventListener("click", () => {
    save(toJson(shown(), state.model, tasks()), "scores.json", "application/json");
  });
  state.listen(() => show(state));
  state.listen(progress(state));
}

function show({ items, view, model }) {
  byId("tools").hidden = byId("actions").hidden = !model || items.length === 0;
  document.body.classList.toggle("empty", items.length === 0);
  if (!model) return;
  const tasks = tasksOf(model, "picture");
  const choice = byId("task");
  if (tasks.join() !== [...choice.options].map((option) => option.value).join()) {
    choice.replaceChildren(...tasks.map((task) => element("option", { value: task }, titled(task))));
  }
  byId("task-choice").hidden = tasks.length < 2;
  byId("sort").value = view.sort;
  choice.value = view.task;
  byId("side").value = view.side;
  for (const input of [byId("threshold"), byId("threshold-number")]) {
    [input.min, input.max] = model.scale;
    if (input !== document.activeElement || input.type === "range") input.value = String(view.threshold);
  }
  const kept = isFiltered(view, model.scale)
    ? items.filter((item) => isKept(scoreOf(item, view.task), view)).length
    : items.length;
  setText(byId("kept"), `${kept} of ${items.length} kept`);
}

/** "3 of 5 scored", at most once a second, because screen readers read it out. */
function progress(state) {
  let timer = 0;
  let said = 0; // when
  const say = () => {
    timer = 0;
    said = performance.now();
    setText(byId("progress"), inWords(state.items));
  };
  return () => {
    const { length } = state.items;
    const done = state.items.filter(isFinished).length;
    const bar = byId("progress-bar");
    bar.hidden = done === length;
    [bar.max, bar.value] = [Math.max(1, length), done];
    if (done === length) say();
    else timer ||= setTimeout(say, Math.max(0, 1000 - (performance.now() - said)));
  };
}

function inWords(items) {
  if (!items.length) return "Nothing to score yet.";
  const failed = items.filter((item) => item.status === "failed").length;
  const scored = items.filter((item) => item.status === "done").length;
  return `${scored} of ${items.length} scored` + (failed ? `, ${counted(failed, "error")}` : "");
}

function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}
