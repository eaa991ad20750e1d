// Rows and timelines in, pictures of them out: bars of the levels, and a clip's scores over its time. Each can be read
// as text too.

import { element, svg, unseen } from "./dom.js";
import { counted, percent, scaleText, scoreText, secondsText, titled } from "./format.js";

/** The levels' probabilities, the best level first, as bars with their values. */
export function bars(row, levels) {
  const line = (level) => {
    const probability = row.probabilities[level];
    const fill = element("span", {});
    fill.style.width = `${100 * probability}%`;
    return element(
      "li",
      {},
      element("span", { class: "word" }, level),
      element("span", { class: "bar", "aria-hidden": "true" }, fill),
      element("span", { class: "share" }, percent(probability)),
    );
  };
  const label = `${titled(row.task)}: probability of each level`;
  return element("ul", { class: "bars", "aria-label": label }, ...levels.map(line));
}

const [WIDTH, HEIGHT] = [280, 116];
const [LEFT, RIGHT, TOP, BOTTOM] = [18, 6, 8, 24]; // margins around the plot
const MOST_DOTS = 60; // more of them would run into each other

/**
 * A clip's frames as a chart, and the same as a table behind a summary.
 * @param {{time: number, index: number, task: string, score: number}[]} points
 * @param {string[]} tasks @param {[number, number]} scale
 */
export function timeline(points, tasks, scale) {
  return element(
    "figure",
    { class: "timeline" },
    tasks.length > 1 ? legend(tasks) : null,
    plot(points, tasks, scale),
    element("figcaption", {}, `Frame by frame, on ${scaleText(scale)}`),
    element("details", {}, element("summary", {}, "Frames as a table"), table(points, tasks)),
  );
}

function plot(points, tasks, [low, high]) {
  const last = Math.max(...points.map((point) => point.time)) || 1;
  const x = (time) => LEFT + (time / last) * (WIDTH - LEFT - RIGHT);
  const y = (score) => TOP + ((high - score) / (high - low)) * (HEIGHT - TOP - BOTTOM);
  const grid = [low, (low + high) / 2, high].flatMap((score) => [
    svg("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: y(score), y2: y(score) }),
    svg("text", { x: LEFT - 6, y: y(score) + 4, "text-anchor": "end" }, String(score)),
  ]);
  const times = [
    svg("text", { x: LEFT, y: HEIGHT - 4 }, secondsText(0)),
    svg("text", { x: WIDTH - RIGHT, y: HEIGHT - 4, "text-anchor": "end" }, secondsText(last)),
  ];
  const curves = tasks.map((task, i) => {
    const own = points.filter((point) => point.task === task);
    const at = own.map((point) => `${x(point.time).toFixed(1)},${y(point.score).toFixed(1)}`);
    const dots = own.length > MOST_DOTS ? [] : own.map((point) => dot(x(point.time), y(point.score), point));
    return svg("g", { class: `curve curve-${i}` }, svg("polyline", { points: at.join(" ") }), ...dots);
  });
  const named = { role: "img", "aria-label": tasks.map((task) => inWords(points, task)).join(" ") };
  return svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, ...named }, ...grid, ...times, ...curves);
}

function dot(cx, cy, point) {
  return svg("circle", { cx, cy, r: 2.5 }, svg("title", {}, `${secondsText(point.time)}: ${scoreText(point.score)}`));
}

/** "Quality of 8 frames: lowest 2.100 at 3 s, highest 4.900 at 0 s." */
function inWords(points, task) {
  const own = points.filter((point) => point.task === task).sort((a, b) => a.score - b.score);
  const say = (point) => `${scoreText(point.score)} at ${secondsText(point.time)}`;
  if (!own.length) return "";
  return `${titled(task)} of ${counted(own.length, "frame")}: lowest ${say(own[0])}, highest ${say(own.at(-1))}.`;
}

function legend(tasks) {
  const keys = tasks.map((task, i) => element("li", { class: `key key-${i}` }, titled(task)));
  return element("ul", { class: "legend", "aria-hidden": "true" }, ...keys);
}

function table(points, tasks) {
  const times = [...new Set(points.map((point) => point.time))];
  const score = (time, task) => points.find((point) => point.time === time && point.task === task)?.score;
  const head = ["Time", ...tasks.map(titled)].map((text) => element("th", { scope: "col" }, text));
  const rows = times.map((time) =>
    element(
      "tr",
      {},
      element("th", { scope: "row" }, secondsText(time)),
      ...tasks.map((task) => element("td", {}, scoreText(score(time, task)))),
    ),
  );
  return element(
    "table",
    {},
    element("caption", {}, unseen("The score of each frame")),
    element("thead", {}, element("tr", {}, ...head)),
    element("tbody", {}, ...rows),
  );
}
