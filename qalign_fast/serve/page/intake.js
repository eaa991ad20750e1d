// What is dropped, pasted or picked in; files with their names out.

import { byId } from "./dom.js";
import { isMedium } from "./kinds.js";

/** @typedef {{file: File, name: string}} Named */

/** `take` is called with the files of each drop, paste and choice. @param {(files: Named[]) => void} take */
export function listenForFiles(take) {
  listenForDrops(take);
  listenForPastes(take);
  const [files, folder, capture] = ["files", "folder", "capture"].map(byId);
  opens(byId("pick"), files, (chosen) => take(chosen.map(named)));
  opens(byId("pick-folder"), folder, (chosen) => take(chosen.filter(isMedium).map(named)));
  opens(null, capture, (chosen) => take(chosen.map(named)));
  byId("pick-folder").hidden = !("webkitdirectory" in folder) || isPhone();
}

const named = (file) => ({ file, name: file.webkitRelativePath || file.name });

/** Phones know the attribute and choose no folders. */
const isPhone = () => /Android|iPhone|iPad/.test(navigator.userAgent);

function opens(button, input, taken) {
  button?.addEventListener("click", () => input.click());
  input.addEventListener("change", () => {
    taken([...input.files]);
    input.value = ""; // the same file may be chosen again
  });
}

function listenForDrops(take) {
  let inside = 0; // dragenter and dragleave come for each element that the pointer crosses
  const mark = (depth) => {
    inside = depth;
    document.body.classList.toggle("dropping", inside > 0);
  };
  const ifFiles = (handle) => (event) => {
    if (!event.dataTransfer?.types.includes("Files")) return;
    event.preventDefault();
    handle(event);
  };
  addEventListener("dragenter", ifFiles(() => mark(inside + 1)));
  addEventListener("dragleave", ifFiles(() => mark(Math.max(0, inside - 1))));
  addEventListener("dragover", ifFiles((event) => (event.dataTransfer.dropEffect = "copy")));
  addEventListener(
    "drop",
    ifFiles(async (event) => {
      mark(0);
      take(await dropped(event.dataTransfer));
    }),
  );
}

function listenForPastes(take) {
  let count = 0;
  addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files ?? [])];
    if (!files.length) return;
    event.preventDefault();
    // browsers call every picture from the clipboard image.png
    take(files.map((file) => ({ file, name: file.name === "image.png" ? `pasted ${++count}.png` : file.name })));
  });
}

/** Files as they are; of folders, the pictures and clips in them. @returns {Promise<Named[]>} */
async function dropped(transfer) {
  // entries must be asked for before the first await: the event takes them back
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.() ?? null);
  const plain = [...transfer.files].map(named);
  if (!entries.some((entry) => entry?.isDirectory)) return plain;
  const found = await Promise.all(entries.filter(Boolean).map((entry) => walk(entry, true)));
  return found.flat();
}

async function walk(entry, asked = false) {
  if (entry.isFile) {
    const file = await new Promise((resolve) => entry.file(resolve, () => resolve(null)));
    return file && (asked || isMedium(file)) ? [{ file, name: entry.fullPath.replace(/^\//, "") }] : [];
  }
  const found = [];
  for (const child of await listed(entry)) found.push(...(await walk(child)));
  return found;
}

/** All entries of a folder: a reader gives a hundred at a time. */
async function listed(folder) {
  const reader = folder.createReader();
  const all = [];
  for (;;) {
    const some = await new Promise((resolve) => reader.readEntries(resolve, () => resolve([])));
    if (!some.length) return all.sort((a, b) => (a.name < b.name ? -1 : 1));
    all.push(...some);
  }
}
