// Items in, one call of `work` for each, a few at a time, in the order in which they came.

export class Queue {
  #waiting = [];
  #running = new Map(); // item -> what aborts it
  #limit;
  #work;

  /**
   * @param {number} limit calls at a time
   * @param {(item: any, signal: AbortSignal) => Promise<void>} work never rejects
   */
  constructor(limit, work) {
    this.#limit = limit;
    this.#work = work;
  }

  get isEmpty() {
    return this.#running.size === 0 && this.#waiting.length === 0;
  }

  add(items) {
    this.#waiting.push(...items);
    this.#fill();
  }

  /** Forgets these items, and aborts those that are under way. */
  remove(items) {
    const gone = new Set(items);
    this.#waiting = this.#waiting.filter((item) => !gone.has(item));
    for (const item of gone) {
      this.#running.get(item)?.abort();
      this.#running.delete(item);
    }
    this.#fill();
  }

  #fill() {
    while (this.#running.size < this.#limit && this.#waiting.length) this.#run(this.#waiting.shift());
  }

  async #run(item) {
    const abort = new AbortController();
    this.#running.set(item, abort);
    await this.#work(item, abort.signal);
    if (this.#running.get(item) === abort) this.#running.delete(item); // else it was removed, and maybe added again
    this.#fill();
  }
}
