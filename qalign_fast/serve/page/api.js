// Files in, the server's answers out. Addresses are relative to the page, so that it works under a proxy's prefix.

/** What passes, or what the user can mend: `kind` is "busy", "unready", "key" or "network". */
export class Trouble extends Error {
  constructor(kind, message, seconds = null) {
    super(message);
    this.kind = kind;
    this.seconds = seconds; // when to try again; null: not told
  }
}

/** The server's last word about a request. */
class Refused extends Error {}

const KEY = "qalign-fast-key";
let key = stored();

/** Keeps the key for this tab, and no longer than the tab is open. */
export function useKey(text) {
  key = text;
  try {
    sessionStorage.setItem(KEY, text);
  } catch {
    // storage is turned off: the key lasts until the page is loaded again
  }
}

export const hasKey = () => key !== "";

/** @returns {Promise<import("./state.js").Model[]>} */
export async function listModels() {
  return (await send("v1/models", {})).data;
}

/** One picture's rows. @returns {Promise<{rows: import("./state.js").Row[]}>} */
export function scorePicture(file, source, tasks, model, signal) {
  return send(`v1/score?${query({ source, model, task: tasks.join(",") })}`, upload(file, signal));
}

/** One clip's rows, and the score of each of its sampled frames. */
export function scoreClip(file, source, tasks, model, signal) {
  const asked = query({ source, model, task: tasks.join(","), timeline: "true" });
  return send(`v1/score/video?${asked}`, upload(file, signal));
}

/** The comparison of pictures A and B in each task. */
export function comparePictures(a, b, tasks, model, signal) {
  const body = new FormData();
  body.append("a", a.file, a.name);
  body.append("b", b.file, b.name);
  return send(`v1/compare?${query({ model, task: tasks.join(",") })}`, { method: "POST", body, signal });
}

const query = (fields) => new URLSearchParams(fields);

function upload(file, signal) {
  const type = /^(image|video)\//.test(file.type) ? file.type : "application/octet-stream";
  return { method: "POST", body: file, headers: { "Content-Type": type }, signal };
}

async function send(path, { headers = {}, ...rest }) {
  let response, answer;
  try {
    response = await fetch(new URL(path, document.baseURI), {
      ...rest,
      headers: { Accept: "application/json", ...headers, ...(key && { Authorization: `Bearer ${key}` }) },
    });
    answer = parse(await response.text());
  } catch (error) {
    if (rest.signal?.aborted) throw error;
    throw new Trouble("network", "The server cannot be reached.");
  }
  if (response.ok && answer) return answer;
  if (response.status === 422 && answer?.rows) return answer; // nothing but bad pictures: each row has its error
  throw failure(response, answer?.error);
}

function failure(response, said) {
  const again = Number(response.headers.get("Retry-After") ?? NaN);
  const seconds = Number.isFinite(again) ? again : null;
  switch (response.status) {
    case 401:
      return new Trouble("key", said ?? "The server asks for a key.");
    case 429:
      return new Trouble("busy", said ?? "The server is busy.", seconds);
    case 503:
      return new Trouble("unready", said ?? "The server is not ready.", seconds);
    case 502: // a proxy whose server is away
    case 504:
      return new Trouble("network", "The server cannot be reached.");
    default:
      return new Refused(said ?? `The server answered ${response.status}, in a way that this page does not know.`);
  }
}

function parse(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

function stored() {
  try {
    return sessionStorage.getItem(KEY) ?? "";
  } catch {
    return "";
  }
}
