// A plotly figure that Python sends whole. plotly.js, 5 MB, comes once a page, in a model of its own.

import { el, listen } from "./_shared.js";

const PLOTLY = Symbol.for("lora_lab.plotly"); // pages may hold several copies of this module

/** plotly.js of the page: a promise. Asked for again after a failure, it tries again. */
function plotly(model) {
  globalThis[PLOTLY] ??= (async () => {
    const id = model.get("library").slice("IPY_MODEL_".length);
    const library = await model.widget_manager.get_model(id);
    // A script made a module: hosts with an AMD loader would take a script for one of theirs.
    const source = [
      "const module = { exports: {} }, { exports } = module, define = undefined;",
      library.get("source"),
      "export default module.exports;",
    ].join("\n");
    const url = URL.createObjectURL(new Blob([source], { type: "text/javascript" }));
    const had = Object.getOwnPropertyDescriptor(globalThis, "Plotly");
    try {
      return (await import(url)).default;
    } finally {
      URL.revokeObjectURL(url);
      if (had) Object.defineProperty(globalThis, "Plotly", had);
      else delete globalThis.Plotly; // the page's own affair
    }
  })().catch((error) => {
    delete globalThis[PLOTLY];
    throw error;
  });
  return globalThis[PLOTLY];
}

function render({ model, el: root }) {
  const place = el("div", { class: "ll-plot" });
  root.append(place);
  let open = true;
  let drawing = null;
  let drawn = ""; // the figure on show, as JSON

  // One at a time, and only the newest: where a page is slow, what was overtaken is not drawn.
  const draw = async () => {
    while (open && model.get("library") && model.get("figure") && model.get("figure") !== drawn) {
      const text = model.get("figure");
      const { data, layout } = JSON.parse(text);
      place.style.minHeight = `${layout.height}px`; // nothing jumps while plotly.js loads
      try {
        const library = await plotly(model);
        if (!open) return;
        await library.react(place, data, layout, model.get("config"));
        place.removeAttribute("data-problem");
      } catch (error) {
        place.dataset.problem = `This figure cannot be drawn: ${error.message ?? error}`;
      }
      drawn = text;
    }
  };
  const redraw = () => {
    drawing ??= draw().finally(() => {
      drawing = null;
    });
  };
  // While the page is at rest, before training takes the cores: the first figure waits for it then.
  const idle = globalThis.requestIdleCallback ?? ((task) => setTimeout(task, 200));
  const load = () => idle(() => open && model.get("library") && plotly(model).catch(() => {}));
  const brought = () => {
    load();
    redraw();
  };
  const leave = listen(model, { "change:figure": redraw, "change:library": brought });
  brought();
  return () => {
    open = false;
    leave();
    globalThis[PLOTLY]?.then((library) => library.purge(place)).catch(() => {});
  };
}

export default { render };
