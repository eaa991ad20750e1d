// An item in; its rows, or its error in plain words, into the state.

import { scoreClip, scorePicture } from "./api.js";
import { mebibytes, titled } from "./format.js";
import { kindOf, readable } from "./kinds.js";
import { tasksOf } from "./state.js";

/**
 * @param {import("./state.js").State} state
 * @param {import("./gate.js").Gate} gate
 * @returns {(item: import("./state.js").Item, signal: AbortSignal) => Promise<void>} never rejects
 */
export function scoring(state, gate) {
  return async (item, signal) => {
    const settle = (fields) => signal.aborted || state.update(item, fields);
    settle({ status: "scoring" });
    try {
      const answer = await ask(item, state.model, gate, signal);
      settle({ rows: answer.rows, timeline: answer.timeline ?? [], ...outcome(answer.rows) });
    } catch (error) {
      settle({ status: "failed", error: titled(error.message) });
    }
  };
}

async function ask(item, model, gate, signal) {
  item.kind ??= await readable(item.file, () => kindOf(item.file));
  const most = model.limits?.max_body ?? Infinity;
  if (item.file.size > most) {
    throw new Error(`This file has ${mebibytes(item.file.size)}. The server takes ${mebibytes(most)} at most.`);
  }
  const call = item.kind === "clip" && clipTasks(item, model) ? scoreClip : scorePicture;
  const tasks = tasksOf(model, call === scoreClip ? "clip" : "picture");
  return gate.through(async () => {
    await readable(item.file); // else it would look like a lost network
    return call(item.file, item.name, tasks, model.id, signal);
  }, signal);
}

/** Whether the model scores clips. One that does not can still score an animated picture's first frame. */
function clipTasks(item, model) {
  if (model.video_tasks.length) return true;
  if (item.file.type.startsWith("image/")) return false;
  throw new Error("This model scores no clips.");
}

function outcome(rows) {
  const bad = rows.find((row) => row.error);
  if (!bad || rows.some((row) => row.score !== null)) return { status: "done", error: null };
  const begin = `${bad.source}: `; // the card has the name above it
  const error = bad.error.startsWith(begin) ? bad.error.slice(begin.length) : bad.error;
  return { status: "failed", error: titled(error) };
}
