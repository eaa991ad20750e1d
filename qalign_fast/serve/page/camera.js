// The camera in, pictures out: a dialog with the camera's view and a shutter. Where there is no camera, or no leave to
// use it, the dialog says so and offers the files.

import { byId, element } from "./dom.js";

/** @param {(files: {file: File, name: string}[]) => void} take */
export function listenForCamera(take) {
  byId("use-camera").addEventListener("click", () => {
    // browsers give the camera to secure pages alone; a phone's own camera works by the file input
    if (navigator.mediaDevices?.getUserMedia) openCamera(take);
    else byId("capture").click();
  });
}

let count = 0;

async function openCamera(take) {
  const dialog = byId("camera");
  const video = element("video", { autoplay: true, playsinline: true, "aria-label": "The camera's view" });
  video.muted = true;
  const said = element("p", { role: "status" }, "Waiting for the camera…");
  const shutter = element("button", { type: "button", class: "main", disabled: true }, "Take the picture");
  const files = element("button", { type: "button", hidden: true }, "Choose a file");
  const close = element("button", { type: "button", onclick: () => dialog.close() }, "Close");
  dialog.replaceChildren(
    element("h2", { id: "camera-title" }, "Camera"),
    video,
    said,
    element("div", { class: "actions" }, shutter, files, close),
  );
  let stream = null;
  let isOpen = true;
  const closed = () => {
    isOpen = false;
    stop(stream);
    dialog.replaceChildren();
  };
  dialog.addEventListener("close", closed, { once: true });
  shutter.addEventListener("click", async () => {
    const name = `camera ${++count}.png`;
    take([{ file: new File([await still(video)], name, { type: "image/png" }), name }]);
    said.textContent = `${name} is taken.`;
  });
  files.addEventListener("click", () => {
    dialog.close();
    byId("capture").click();
  });
  dialog.showModal();
  try {
    const wanted = { facingMode: "environment", width: { ideal: 1920 } };
    stream = await navigator.mediaDevices.getUserMedia({ video: wanted });
    if (!isOpen) return stop(stream);
    video.srcObject = stream;
    await video.play();
    said.textContent = "";
    shutter.disabled = false;
    shutter.focus();
  } catch (error) {
    video.hidden = shutter.hidden = true;
    files.hidden = false;
    said.textContent = inWords(error);
  }
}

const stop = (stream) => stream?.getTracks().forEach((track) => track.stop());

/** The frame that is shown, without loss: a JPEG would add damage of its own. @returns {Promise<Blob>} */
function still(video) {
  const canvas = element("canvas", { width: video.videoWidth, height: video.videoHeight });
  canvas.getContext("2d").drawImage(video, 0, 0);
  return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
}

function inWords(error) {
  switch (error.name) {
    case "NotAllowedError":
      return "The browser may not use the camera. Its settings for this page can allow it.";
    case "NotFoundError":
    case "OverconstrainedError":
      return "There is no camera here.";
    case "NotReadableError":
      return "Another program uses the camera.";
    default:
      return "The camera does not answer.";
  }
}
