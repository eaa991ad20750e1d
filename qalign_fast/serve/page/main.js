// The page: puts the parts together. Files go from the intake into the state and the queue; answers go back into the
// state; the list, the tools and the notices show it.

import { listModels } from "./api.js";
import { listenForCamera } from "./camera.js";
import { compare } from "./compare.js";
import { byId } from "./dom.js";
import { Gate } from "./gate.js";
import { listenForFiles } from "./intake.js";
import { List } from "./list.js";
import { showModels } from "./model.js";
import { hideRemoved, showFailure, showRemoved, showTrouble } from "./notices.js";
import { isFinished } from "./order.js";
import { Queue } from "./queue.js";
import { scoring } from "./scoring.js";
import { State } from "./state.js";
import { listenToTools } from "./tools.js";

const AT_A_TIME = 4; // requests; more would only wait in the server's queue

const state = new State();
const gate = new Gate((trouble) => showTrouble(trouble, () => gate.retry()));
const queue = new Queue(AT_A_TIME, scoring(state, gate));
new List(state, { remove: (item) => remove([item]), again: (item) => enqueue([item]), compare: pick });
listenToTools(state, () => remove(state.items));
listenForFiles(take);
listenForCamera(take);
addEventListener("online", () => gate.retry());
start();

async function start() {
  try {
    state.models = await gate.through(listModels);
  } catch (error) {
    return showFailure(error.message, start);
  }
  state.use(state.models[0]);
  showModels(state, change);
  queue.add(state.items); // those that came before the answer
}

function take(files) {
  hideRemoved();
  const added = state.add(files);
  if (state.model) queue.add(added);
}

function remove(items) {
  queue.remove(items);
  if (queue.isEmpty && state.model) gate.forget();
  state.remove(items);
  showRemoved(items.length, () => {
    state.putBack(items);
    enqueue(items.filter((item) => !isFinished(item)));
  });
}

/** Another model: everything is scored anew. */
function change(model) {
  hideRemoved(); // those were scored by the model before
  queue.remove(state.items);
  state.use(model);
  enqueue(state.items);
}

function enqueue(items) {
  state.reset(items);
  if (state.model) queue.add(items);
}

async function showBoth(a, b) {
  await compare(a, b, state.model, gate);
  if (queue.isEmpty) gate.forget();
}

/** The first picture that is picked is A. Each one after it is compared with A, until A is pressed again. */
function pick(item) {
  if (state.picked === item) return state.pick(null);
  if (state.picked) return showBoth(state.picked, item);
  state.pick(item);
  byId("said").textContent = `${item.name} is picked as A. “Compare with A” on another picture shows both.`;
}
