// What went wrong in the panel above, as it was brought up to date.

import { el, listen } from "./_shared.js";
import { errorStrip } from "./error_strip.js";

function render({ model, el: host, signal }) {
  const strip = errorStrip();
  const root = el("div", { class: "ll-panel" }, strip.node);
  const draw = () => strip.draw(model.get("problem"));
  const unlisten = listen(model, { "change:problem": draw });
  host.append(root);
  draw();
  const cleanup = () => {
    unlisten();
    root.remove();
  };
  signal?.addEventListener("abort", cleanup);
  return cleanup;
}

export default { render };
