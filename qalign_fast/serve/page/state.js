// What the page knows: files that were added, the answers about them, and how they are shown. Changes are told to
// listeners.

/**
 * A model of /v1/models, as far as the page reads it.
 * @typedef {{id: string, tasks: string[], video_tasks: string[], scale: [number, number], levels: string[],
 *   precision: string, engine: string, device: string, limits?: {max_body?: number}}} Model
 *
 * A row of an answer: one source in one task.
 * @typedef {{source: string, task: string, score: number|null, level: string|null,
 *   probabilities: Record<string, number>|null, error: string|null, frames?: number, warnings?: string[]}} Row
 *
 * A file that was added. `status` is "waiting", "scoring", "done" or "failed".
 * @typedef {{id: number, file: File, name: string, kind: "picture"|"clip"|null, status: string, rows: Row[],
 *   timeline: {time: number, index: number, task: string, score: number}[], error: string|null}} Item
 *
 * How results are shown. `side` says which side of the threshold is kept: "least" or "most".
 * @typedef {{sort: string, task: string, side: string, threshold: number}} View
 */

const USUAL_TASKS = ["quality", "aesthetics"];

export class State {
  /** @type {Item[]} */ items = [];
  /** @type {Model|null} */ model = null;
  /** @type {Model[]} */ models = [];
  /** @type {View} */ view = { sort: "added", task: "quality", side: "least", threshold: 1 };
  /** @type {Item|null} the picture that others are compared with */ picked = null;
  #listeners = [];
  #count = 0;

  /** `heard` is called with the items that changed, and with none when only their order or their number has. */
  listen(heard) {
    this.#listeners.push(heard);
  }

  changed(items = []) {
    for (const heard of this.#listeners) heard(items);
  }

  /** @param {{file: File, name: string}[]} files @returns {Item[]} */
  add(files) {
    const added = files.map(({ file, name }) => ({ id: this.#count++, file, name, kind: null, ...fresh() }));
    this.items.push(...added);
    this.changed(added);
    return added;
  }

  remove(items) {
    const gone = new Set(items);
    this.items = this.items.filter((item) => !gone.has(item));
    if (gone.has(this.picked)) this.pick(null);
    this.changed();
  }

  /** Undoes `remove`. */
  putBack(items) {
    this.items = [...this.items, ...items].sort((a, b) => a.id - b.id);
    this.changed(items);
  }

  /** Sets fields of one item. */
  update(item, fields) {
    Object.assign(item, fields);
    this.changed([item]);
  }

  /** Forgets the answers about these items: they will be scored again. */
  reset(items) {
    for (const item of items) Object.assign(item, fresh());
    this.changed(items);
  }

  /** @param {Partial<View>} fields */
  look(fields) {
    Object.assign(this.view, fields);
    this.changed();
  }

  pick(item) {
    this.picked = item;
    this.changed(this.items); // each card says whether it would be compared
  }

  /** @param {Model} model */
  use(model) {
    this.model = model;
    const [task] = tasksOf(model, "picture");
    this.look({ task, side: "least", threshold: model.scale[0] });
  }
}

/** The tasks that are scored, as the command line's `all`: quality and aesthetics, else all the model has. */
export function tasksOf(model, kind) {
  const has = kind === "clip" ? model.video_tasks : model.tasks;
  const usual = USUAL_TASKS.filter((task) => has.includes(task));
  return usual.length ? usual : has;
}

const fresh = () => ({ status: "waiting", rows: [], timeline: [], error: null });
