// A worker: a picture's file and the most pixels of a side in, the picture made small out; null if it cannot.

addEventListener("message", async ({ data: { number, file, side } }) => {
  postMessage({ number, blob: await shrink(file, side).catch(() => null) });
});

async function shrink(file, most) {
  const whole = await createImageBitmap(file);
  const scale = Math.min(1, most / Math.max(whole.width, whole.height));
  const side = (length) => Math.max(1, Math.round(scale * length));
  const canvas = new OffscreenCanvas(side(whole.width), side(whole.height));
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(whole, 0, 0, canvas.width, canvas.height);
  whole.close();
  return canvas.convertToBlob({ type: "image/webp", quality: 0.85 });
}
