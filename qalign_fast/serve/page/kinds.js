// A file in, "picture" or "clip" out: by its type or suffix; a GIF, WebP or PNG is a clip if it holds several frames.

const PICTURES = "jpg jpeg jpe jfif jif png apng webp gif tif tiff bmp dib ppm pgm pbm avif mpo heic heif hif jxl";
const CLIPS =
  "mp4 m4v mov mkv webm avi mpg mpeg m2v vob ts mts m2ts wmv asf flv f4v 3gp 3g2 ogv mxf qt y4m";
const PICTURE_SUFFIXES = new Set(PICTURES.split(" "));
const CLIP_SUFFIXES = new Set(CLIPS.split(" "));
const HEAD = 1 << 16; // bytes in which a PNG tells that it is animated

/** The suffix in lower case, without its dot; "" if there is none. */
export function suffixOf(name) {
  return /\.([^./\\]+)$/.exec(name)?.[1].toLowerCase() ?? "";
}

/** Whether a file in a folder is one to score. */
export function isMedium(file) {
  if (file.name.startsWith(".")) return false;
  return PICTURE_SUFFIXES.has(suffixOf(file.name)) || isVideo(file) || file.type.startsWith("image/");
}

/** @param {File} file @returns {Promise<"picture"|"clip">} */
export async function kindOf(file) {
  return isVideo(file) || (await isAnimated(file)) ? "clip" : "picture";
}

/** Whether it is a video file, and no animated picture. */
export function isVideo(file) {
  // browsers take TypeScript's .ts for MPEG's
  return file.type ? file.type.startsWith("video/") : CLIP_SUFFIXES.has(suffixOf(file.name));
}

/** Raises an error in plain words for a file that is gone. `read` reads what is wanted of it, by default a byte. */
export async function readable(file, read = () => file.slice(0, 1).arrayBuffer()) {
  try {
    return await read();
  } catch {
    throw new Error("The browser can no longer read this file. It may have been moved or changed.");
  }
}

/** @param {File} file */
async function isAnimated(file) {
  const head = new Uint8Array(await file.slice(0, HEAD).arrayBuffer());
  const text = (from, to) => String.fromCharCode(...head.subarray(from, to));
  if (text(0, 4) === "GIF8") return hasTwoFrames(new Uint8Array(await file.arrayBuffer()));
  if (text(0, 4) === "RIFF" && text(8, 16) === "WEBPVP8X") return (head[20] & 2) !== 0; // the flag for animation
  if (text(0, 4) === "\x89PNG") return hasAnimationChunk(head);
  return false;
}

/** Walks a GIF's blocks up to its second picture (GIF89a, sections 15 to 27). */
function hasTwoFrames(bytes) {
  const table = (flags) => (flags & 0x80 ? 3 << ((flags & 7) + 1) : 0);
  const skip = (at) => {
    while (at < bytes.length && bytes[at]) at += bytes[at] + 1;
    return at + 1;
  };
  let pictures = 0;
  let at = 13 + table(bytes[10]);
  while (at < bytes.length) {
    if (bytes[at] === 0x21) at = skip(at + 2);
    else if (bytes[at] !== 0x2c || ++pictures === 2) break;
    else at = skip(at + 11 + table(bytes[at + 9]));
  }
  return pictures === 2;
}

/** Whether a PNG has `acTL` before its first `IDAT`. */
function hasAnimationChunk(head) {
  const view = new DataView(head.buffer);
  for (let at = 8; at + 8 <= head.length; at += 12 + view.getUint32(at)) {
    const name = view.getUint32(at + 4);
    if (name === 0x6163544c) return true;
    if (name === 0x49444154) return false;
  }
  return false;
}
