// A row in; its score with scale, its level word and its bars out.

import { bars } from "./chart.js";
import { element } from "./dom.js";
import { scaleText, scoreText, titled } from "./format.js";

/** @param {import("./state.js").Row} row @param {import("./state.js").Model} model */
export function scoreBlock(row, model) {
  if (row.score === null) return element("p", { class: "error" }, `${titled(row.task)}: ${row.error}`);
  return element(
    "div",
    { class: "score", role: "group", "aria-label": titled(row.task), data: { task: row.task } },
    element("p", { class: "task" }, titled(row.task), " ", element("span", { class: "level" }, row.level)),
    value(row, model),
    bars(row, model.levels),
  );
}

/** "4.951 on 1 to 5". */
export function value(row, model) {
  const scale = element("span", { class: "scale" }, `on ${scaleText(model.scale)}`);
  return element("p", { class: "value" }, element("strong", {}, scoreText(row.score)), " ", scale);
}
