// @ts-check
// A file of the page's computer, sent to Python in pieces: a server refuses large messages.
/** @import { Model } from "./_shared.js" */

const PIECE = 512 * 1024; // bytes
const ANSWER_MS = 60_000;

/**
 * Send a file, each piece when the last one has arrived.
 * @param {Model} model
 * @param {File} file
 * @param {(text: string) => void} tell
 */
export async function sendFile(model, file, tell) {
  const count = Math.max(1, Math.ceil(file.size / PIECE));
  for (let at = 0; at < count; at++) {
    tell(`${file.name}: ${Math.round((100 * at) / count)} %`);
    const data = await base64(file.slice(at * PIECE, (at + 1) * PIECE));
    const last = at === count - 1;
    const piece = { name: file.name, data, first: at === 0, last };
    const arrived = answerTo(model, `upload-${at}`);
    model.send({ type: "upload", seq: `upload-${at}`, ...piece });
    if (!(await arrived) || (model.get("problem") && !last)) {
      tell(""); // the red strip says why, or the kernel has gone
      return;
    }
  }
  tell("");
}

/** Whether Python answers to a message. */
function answerTo(model, seq) {
  return new Promise((resolve) => {
    const end = (/** @type {boolean} */ arrived) => {
      clearTimeout(timer);
      model.off("msg:custom", hear);
      resolve(arrived);
    };
    const hear = (content) => content.seq === seq && end(true);
    const timer = setTimeout(() => end(false), ANSWER_MS);
    model.on("msg:custom", hear);
  });
}

/** @param {Blob} blob */
function base64(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(String(reader.result).split(",")[1] ?? "");
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}
