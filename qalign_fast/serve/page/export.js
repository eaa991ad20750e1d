// Items that are shown in, a file of their rows out: CSV or JSON, with the fields of the command line's.

import { element } from "./dom.js";
import { isFinished } from "./order.js";

/** What a spreadsheet would run as a formula: "=1+1", also in the wide letters of Chinese and Japanese keyboards. */
const FORMULA = /^[=+\-@\t\r\n＝＋－＠]/;

/** The rows of items that are finished, in order. @returns {import("./state.js").Row[]} */
export function rowsOf(items, tasks) {
  const none = { score: null, level: null, probabilities: null };
  return items.filter(isFinished).flatMap((item) => {
    if (item.rows.length) return item.rows;
    return tasks.map((task) => ({ source: item.name, task, ...none, error: item.error })); // refused as a whole
  });
}

/** CSV: a column for each level, warnings as one text, no formulas. */
export function toCsv(rows, levels) {
  const fields = ["source", "task", "score", "level", ...levels, "frames", "error", "warnings"];
  const line = (row) => {
    const flat = { ...row, ...row.probabilities, warnings: (row.warnings ?? []).join("; ") };
    return fields.map((field) => cell(flat[field])).join(",");
  };
  return [fields.join(","), ...rows.map(line)].map((text) => `${text}\n`).join("");
}

/** JSON: the rows as the server gave them; a clip's have their part of the timeline. */
export function toJson(items, model, tasks) {
  const times = new Map(items.flatMap((item) => item.rows.map((row) => [row, item.timeline])));
  const rows = rowsOf(items, tasks).map((row) => {
    const own = (times.get(row) ?? []).filter((point) => point.task === row.task);
    return own.length ? { ...row, timeline: own } : row;
  });
  return `${JSON.stringify({ model: model.id, rows }, null, 2)}\n`;
}

/** Has the browser save a text. */
export function save(text, name, type) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  element("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000); // the download has begun by then
}

function cell(value) {
  if (value === null || value === undefined) return "";
  if (typeof value === "number") return String(value);
  const text = FORMULA.test(value) ? `'${value}` : value;
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}
