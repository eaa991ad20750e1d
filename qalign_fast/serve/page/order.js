// Items and a view in; which of them are shown, in which order, out. Nothing here touches the page.

/** @typedef {import("./state.js").Item} Item @typedef {import("./state.js").View} View */

const names = new Intl.Collator("en", { numeric: true, sensitivity: "base" });

/** An item's score in a task; null where there is none. */
export function scoreOf(item, task) {
  return item.rows.find((row) => row.task === task)?.score ?? null;
}

export const isFinished = (item) => item.status === "done" || item.status === "failed";

/** Whether the view leaves anything out. */
export function isFiltered(view, [low, high]) {
  return view.side === "least" ? view.threshold > low : view.threshold < high;
}

/** Whether a score is on the side of the threshold that is kept. */
export function isKept(score, view) {
  return score !== null && (view.side === "least" ? score >= view.threshold : score <= view.threshold);
}

/**
 * The items that are shown, in order. A filter leaves out errors too, and keeps what is not scored yet.
 * @param {Item[]} items @param {View} view @param {[number, number]} scale @returns {Item[]}
 */
export function arrange(items, view, scale) {
  const shown = isFiltered(view, scale)
    ? items.filter((item) => !isFinished(item) || isKept(scoreOf(item, view.task), view))
    : items;
  const by = ORDERS[view.sort];
  return by ? [...shown].sort((a, b) => by(a, b, view.task) || a.id - b.id) : shown;
}

const ORDERS = {
  best: (a, b, task) => byScore(a, b, task, -1),
  worst: (a, b, task) => byScore(a, b, task, 1),
  name: (a, b) => names.compare(a.name, b.name),
};

/** What has no score comes last in both directions. */
function byScore(a, b, task, sign) {
  const [x, y] = [scoreOf(a, task), scoreOf(b, task)];
  if (x === null || y === null) return Number(x === null) - Number(y === null);
  return sign * (x - y);
}
