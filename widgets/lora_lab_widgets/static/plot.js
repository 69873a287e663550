// @ts-check
// A plotly figure that Python sends whole. plotly.js, 5 MB, comes once a page, as its own model.
/** @import { Model } from "./_shared.js" */

import { PanelView, el, listen, panel } from "./_shared.js";

const PLOTLY = Symbol.for("lora_lab.plotly"); // pages may hold several copies of this module
const ASKED = Symbol.for("lora_lab.plotly.asked"); // when a figure of the page asked Python for it
const ASK_AGAIN_MS = 30_000;

/**
 * plotly.js of the page: a promise. Asked for again after a failure, it tries again.
 * @param {Model} model
 */
function plotly(model) {
  globalThis[PLOTLY] ??= load(model).catch((error) => {
    delete globalThis[PLOTLY];
    throw error;
  });
  return globalThis[PLOTLY];
}

/** @param {Model} model of a figure; returns that of its plotly.js */
function libraryOf(model) {
  return model.widget_manager.get_model(model.get("library").slice("IPY_MODEL_".length));
}

async function load(model) {
  const library = await libraryOf(model);
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
    else Reflect.deleteProperty(globalThis, "Plotly"); // the page's own affair
  }
}

/** Have Python send plotly.js: where there is a figure, it is only this page that has none. */
function askFor(library) {
  const now = performance.now();
  if (now - (library[ASKED] ?? -Infinity) < ASK_AGAIN_MS) return;
  library[ASKED] = now;
  library.send?.({ type: "source" });
}

class PlotView extends PanelView {
  build() {
    this.open = true;
    this.library = null; // the model that brings plotly.js
    this.ready = false; // plotly.js has come
    this.drawing = false;
    this.drawn = ""; // the figure on show, as JSON
    this.width = 0; // at which it was drawn, where it fills its place
    this.closers.push(() => this.close());
    return el("div", { class: "ll-plot" });
  }

  follow() {
    this.watch(() => this.redraw(), "figure");
    if (this.model.get("fills")) this.watchSize(() => this.redraw());
    this.start();
  }

  close() {
    this.open = false;
    this.clear();
  }

  clear() {
    this.drawn = "";
    this.root.removeAttribute("data-problem");
    globalThis[PLOTLY]?.then((library) => library.purge(this.root)).catch(() => {});
  }

  /** Load while the page is at rest, before training takes the cores; as soon as it has come. */
  async start() {
    const library = await libraryOf(this.model);
    if (!this.open) return;
    this.library = library;
    const idle = globalThis.requestIdleCallback ?? ((task) => setTimeout(task, 200));
    const begin = () => {
      this.ready = Boolean(library.get("source"));
      if (this.ready) idle(() => this.open && plotly(this.model).catch(() => {}));
      this.redraw();
    };
    this.closers.push(listen(library, { "change:source": begin }));
    begin();
  }

  /** One at a time, and only the newest: where a page is slow, what was overtaken is not drawn. */
  async redraw() {
    if (this.drawing) return;
    if (this.library && !this.ready && this.model.get("figure")) askFor(this.library);
    this.drawing = true;
    try {
      while (this.open && this.hasNews()) await this.draw(this.model.get("figure"));
    } finally {
      this.drawing = false;
    }
  }

  hasNews() {
    const figure = this.model.get("figure");
    return this.ready && (figure !== this.drawn || (figure !== "" && this.width !== this.room));
  }

  /** The width that a figure has to fill; 0 where it keeps its own, or nothing is seen of it. */
  get room() {
    return this.model.get("fills") ? this.root.clientWidth || this.width : 0;
  }

  /** @param {string} text the figure as JSON, "" for none */
  async draw(text) {
    if (text === "") {
      this.clear();
      return;
    }
    const { data, layout } = JSON.parse(text);
    this.root.style.minHeight = `${layout.height}px`; // nothing jumps while plotly.js loads
    try {
      const library = await plotly(this.model);
      if (!this.open) return;
      this.width = this.room;
      if (this.width) layout.width = this.width;
      await library.react(this.root, data, layout, this.model.get("config"));
      this.root.removeAttribute("data-problem");
    } catch (error) {
      const reason = error instanceof Error ? error.message : error;
      this.root.dataset.problem = `This figure cannot be drawn: ${reason}`;
      this.width = this.room; // else it would be tried again at once, without end
    }
    this.drawn = text;
  }
}

export default panel(PlotView, { part: true });
