// Calls to the server in, their answers out, however long it takes: while the server is busy, loading or away, or wants
// a key, all calls wait at one gate, and the user is told why.

import { Trouble } from "./api.js";

const UNTOLD = 2; // seconds to wait where the server says none
const LEAST = 0.5; // s: "Retry-After: 0" must not become a flood
const LONGEST = 30; // s between tries to reach a server that is away

export class Gate {
  #open = null; // while closed: what opens it
  #opened = Promise.resolve();
  #timer = 0;
  #failures = 0; // in a row
  #tell;

  /** `tell` is called with {kind, message, seconds} when calls begin to wait, and with null when one was answered. */
  constructor(tell) {
    this.#tell = tell;
  }

  /** Calls until there is an answer, or an error that waiting does not mend. */
  async through(call, signal) {
    for (;;) {
      await unlessAborted(this.#opened, signal);
      try {
        const answer = await call();
        this.#settle();
        return answer;
      } catch (error) {
        if (!(error instanceof Trouble)) throw error;
        this.#close(error);
      }
    }
  }

  /** Lets the calls that wait try now. */
  retry() {
    clearTimeout(this.#timer);
    this.#open?.();
    this.#open = null;
  }

  /** For when no call waits any more: there is nothing to tell. */
  forget() {
    this.retry();
    this.#settle();
  }

  #settle() {
    if (!this.#failures || this.#open) return;
    this.#failures = 0;
    this.#tell(null);
  }

  /** Calls that fail side by side close it once. */
  #close(trouble) {
    if (this.#open) return;
    this.#opened = new Promise((open) => (this.#open = open));
    const seconds = waitFor(trouble, this.#failures++);
    if (seconds !== null) this.#timer = setTimeout(() => this.retry(), 1000 * seconds);
    this.#tell({ kind: trouble.kind, message: trouble.message, seconds });
  }
}

/** Seconds until the next try; null: until the user does something. */
function waitFor(trouble, failures) {
  if (trouble.kind === "key") return null;
  if (trouble.kind === "network") return Math.min(LONGEST, 2 ** failures);
  return Math.max(LEAST, trouble.seconds ?? UNTOLD);
}

function unlessAborted(promise, signal) {
  if (!signal) return promise;
  return new Promise((resolve, reject) => {
    const abort = () => reject(signal.reason);
    if (signal.aborted) return abort();
    signal.addEventListener("abort", abort, { once: true });
    return promise.then(resolve).finally(() => signal.removeEventListener("abort", abort));
  });
}
