// A file in, a small picture of it out, a few at a time. Pictures are made small by a worker, so that the page does not
// wait for large ones; a clip gives a frame from near its begin.

import { element } from "./dom.js";
import { isVideo } from "./kinds.js";

const SIDE = 480; // pixels of the longer side: twice a card's picture, for fine screens
const AT_A_TIME = 2;
const PATIENCE = 10_000; // ms until a clip that gives no frame is given up

const waiting = [];
let running = 0;
let worker = null;
let isBroken = false; // the worker cannot be loaded
const asked = new Map(); // number -> what takes the worker's answer
let count = 0;

/** The small picture; null where the browser cannot read the file. @returns {Promise<Blob|null>} */
export function thumbnail(file, signal) {
  return new Promise((resolve) => {
    waiting.push({ file, signal, resolve });
    next();
  });
}

async function next() {
  if (running >= AT_A_TIME || !waiting.length) return;
  const { file, signal, resolve } = waiting.shift();
  running++;
  resolve(signal.aborted ? null : await make(file).catch(() => null));
  running--;
  next();
}

async function make(file) {
  if (isVideo(file)) return ofClip(file);
  if (typeof OffscreenCanvas === "undefined" || isBroken) return file; // the browser makes it small when it shows it
  return ofPicture(file);
}

function ofPicture(file) {
  if (!worker) {
    worker = new Worker(new URL("./shrink.js", import.meta.url), { type: "module" });
    worker.onmessage = ({ data: { number, blob } }) => {
      asked.get(number)(blob);
      asked.delete(number);
    };
    worker.onerror = () => {
      isBroken = true;
      for (const take of asked.values()) take(null);
      asked.clear();
    };
  }
  return new Promise((resolve) => {
    asked.set(++count, resolve);
    worker.postMessage({ number: count, file, side: SIDE });
  });
}

async function ofClip(file) {
  const url = URL.createObjectURL(file);
  const video = element("video", { preload: "auto", playsinline: true });
  video.muted = true;
  try {
    await new Promise((resolve, reject) => {
      video.onseeked = resolve;
      video.onerror = reject;
      video.onloadeddata = () => (video.currentTime = Math.min(0.5, video.duration / 2 || 0));
      setTimeout(reject, PATIENCE);
      video.src = url;
    });
    const scale = Math.min(1, SIDE / Math.max(video.videoWidth, video.videoHeight));
    const canvas = element("canvas", { width: scale * video.videoWidth, height: scale * video.videoHeight });
    canvas.getContext("2d").drawImage(video, 0, 0, canvas.width, canvas.height);
    return await new Promise((resolve) => canvas.toBlob(resolve, "image/webp", 0.8));
  } finally {
    video.removeAttribute("src");
    video.load();
    URL.revokeObjectURL(url);
  }
}
