// @ts-check
// A file that Python has ready, fetched in pieces over the widget's line; see delivery.py.
/** @import { Model } from "./_shared.js" */
import { el } from "./_shared.js";

const ANSWER_MS = 60_000;

/**
 * Fetch the file that Python offers; null where it does not come.
 * @param {Model} model
 * @param {{token: number, size: number, kind: string}} offer
 * @param {(share: number) => void} tell
 * @returns {Promise<Blob | null>}
 */
export async function fetchFile(model, offer, tell) {
  const parts = [];
  let at = 0;
  while (at < offer.size) {
    tell(at / offer.size);
    const piece = await pieceAt(model, offer.token, at);
    if (!piece) return null;
    parts.push(piece);
    at += piece.length;
  }
  if (offer.kind !== "html.gz") return new Blob(parts, { type: "application/zip" });
  const whole = new Blob(parts).stream().pipeThrough(new DecompressionStream("gzip"));
  const text = await new Response(whole).text();
  return new Blob([text], { type: "text/html" });
}

/**
 * The link that opens a report which Python has written: {node, take(), of(id), close()}. A page
 * of its own, so that its figures move: no server, and no notebook that would have to be trusted.
 * @param {Model} model
 */
export function reportLink(model) {
  const open = el("a", { class: "ll-link", target: "_blank", text: "Open the report" });
  const save = el("a", { class: "ll-link", text: "Download it" });
  const status = el("span", { class: "ll-dim", role: "status" });
  const node = el("span", { class: "ll-report-link" }, status, open, save);
  let about = ""; // whose report the link opens
  let shown = ""; // the run on show
  let url = "";
  const draw = () => {
    open.hidden = save.hidden = !url || about !== shown;
  };
  const close = () => {
    if (url) URL.revokeObjectURL(url);
    url = "";
    draw();
  };
  const take = async () => {
    const offer = model.get("offer");
    if (offer.kind !== "html.gz") return;
    close();
    const page = await fetchFile(model, offer, (share) => {
      status.textContent = `fetching the report… ${Math.round(100 * share)} %`;
    });
    status.textContent = page ? "" : "the report did not come; write it again";
    if (!page) return;
    url = URL.createObjectURL(page);
    about = offer.about;
    open.href = save.href = url;
    save.download = offer.name;
    draw();
  };
  const of = (id) => {
    shown = id ?? "";
    draw();
  };
  draw();
  return { node, take, of, close };
}

/** Have the browser save a blob as a file. */
export function saveAs(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), ANSWER_MS);
}

/** The bytes from one place on; null where Python does not answer, or has them no more. */
function pieceAt(model, token, at) {
  return new Promise((resolve) => {
    const end = (bytes) => {
      clearTimeout(timer);
      model.off("msg:custom", hear);
      resolve(bytes);
    };
    const hear = (content) => {
      if (content.type === "piece" && content.token === token && content.at === at) {
        end(bytesOf(content.data));
      } else if (content.seq === seq) {
        end(null); // it answered, and without a piece: the red strip says why
      }
    };
    const seq = `piece-${token}-${at}`;
    const timer = setTimeout(() => end(null), ANSWER_MS);
    model.on("msg:custom", hear);
    model.send({ type: "piece", token, at, seq });
  });
}

/** @param {string} text base64 */
function bytesOf(text) {
  return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
}
