// @ts-check
// Boxes, lines and choices of ipywidgets, drawn by the page: marimo knows their models, and shows
// anywidgets alone. Those are drawn by themselves, each in its place.
/** @import { Model } from "./_shared.js" */

import { el, followTheme, listen } from "./_shared.js";

const FLOW = { VBoxModel: "column", HBoxModel: "row", BoxModel: "row" };
const KINDS = { DropdownModel: "select" };

/** One place that shows the tree of widgets below a model. */
class Tree {
  /**
   * @param {Model["widget_manager"]} manager
   * @param {{getWidget(ref: string): Promise<{render(place: object): Promise<void>}>}} host
   * @param {AbortSignal} signal
   */
  constructor(manager, host, signal) {
    this.manager = manager;
    this.host = host;
    this.signal = signal;
  }

  /**
   * Draw widgets in a place, behind each other. Each is put there before it draws itself: marimo
   * brings a widget's style sheet to where it stands.
   * @param {HTMLElement} place
   * @param {string[]} references "IPY_MODEL_" and a model's name
   */
  async show(place, references) {
    const models = await Promise.all(references.map((one) => this.model(one)));
    if (this.signal.aborted) return;
    const nodes = models.map((model) => el(KINDS[model.get("_model_name")] ?? "div"));
    place.replaceChildren(...nodes);
    await Promise.all(models.map((model, at) => this.draw(nodes[at], model, references[at])));
  }

  /** @param {string} reference */
  model(reference) {
    return this.manager.get_model(reference.slice("IPY_MODEL_".length));
  }

  async draw(node, model, reference) {
    const kind = model.get("_model_name");
    await this.arrange(node, model, kind);
    if (kind in FLOW) await this.fill(node, model);
    else if (kind === "HTMLModel") this.watch(model, "value", () => this.write(node, model));
    else if (kind === "DropdownModel") this.choose(node, model);
    else {
      const widget = await this.host.getWidget(reference.replace("IPY_MODEL_", "anywidget:"));
      await widget.render({ el: node, signal: this.signal });
    }
  }

  /** Draw now, and again whenever a trait of a model changes, as long as the place is there. */
  watch(model, trait, draw) {
    const stop = listen(model, { [`change:${trait}`]: draw });
    this.signal.addEventListener("abort", stop, { once: true });
    draw();
  }

  /** Give a node its widget's classes and layout. */
  async arrange(node, model, kind) {
    const own = kind in FLOW ? { display: "flex", "flex-direction": FLOW[kind] } : {};
    this.watch(model, "_dom_classes", () => {
      node.className = [kind === "DropdownModel" ? "ll-input" : "", ...model.get("_dom_classes")]
        .join(" ");
    });
    const layout = await this.model(model.get("layout"));
    for (const name of LAYOUT) {
      const property = name.replace("_", "-");
      this.watch(layout, name, () => {
        node.style.setProperty(property, layout.get(name) ?? own[property] ?? "");
      });
    }
    node.style.setProperty("flex-direction", own["flex-direction"] ?? "");
  }

  /** Put a box's children into it, and others when it gets others. */
  async fill(node, model) {
    let shown = new AbortController();
    this.signal.addEventListener("abort", () => shown.abort(), { once: true });
    const draw = () => {
      shown.abort();
      shown = new AbortController();
      const tree = new Tree(this.manager, this.host, shown.signal);
      return tree.show(node, model.get("children"));
    };
    const stop = listen(model, { "change:children": draw });
    this.signal.addEventListener("abort", stop, { once: true });
    await draw();
  }

  /** Show a line: its text, in elements of two kinds with nothing but how they look. */
  write(node, model) {
    const { body } = new DOMParser().parseFromString(model.get("value"), "text/html");
    node.replaceChildren(...[...body.childNodes].map(plain));
  }

  /** Fill a choice, and tell Python what is chosen. */
  choose(node, model) {
    node.addEventListener("change", () => {
      model.set("index", node.selectedIndex);
      model.save_changes();
    });
    const select = () => {
      node.selectedIndex = model.get("index") ?? -1;
    };
    this.watch(model, "_options_labels", () => {
      node.replaceChildren(...model.get("_options_labels").map((text) => el("option", { text })));
      select();
    });
    this.watch(model, "index", select);
    this.watch(model, "description", () => {
      node.setAttribute("aria-label", model.get("description"));
    });
  }
}

/** @param {any} node of a line, as it was parsed */
function plain(node) {
  if (!(node instanceof Element)) return node.textContent ?? "";
  const look = ["class", "role", "style"].map((name) => [name, node.getAttribute(name)]);
  const tag = node.localName === "span" ? "span" : "div";
  return el(tag, Object.fromEntries(look), ...[...node.childNodes].map(plain));
}

// What the workbench sets of a layout.
const LAYOUT = ["display", "flex_flow", "grid_gap", "margin", "overflow", "width"];

export default {
  /** @param {{model: Model, el: HTMLElement, signal: AbortSignal, host: any}} place */
  async render({ model, el: place, signal, host }) {
    signal.addEventListener("abort", followTheme(place), { once: true });
    await new Tree(model.widget_manager, host, signal).show(place, [model.get("root")]);
  },
};
