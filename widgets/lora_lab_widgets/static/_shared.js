// @ts-check
// Helpers of every panel. No state here: one page may hold many panels.

import { Kernel } from "./kernel.js";
import { recover } from "./recovery.js";

/**
 * A widget's traits as the page has them.
 * @typedef {object} Model
 * @property {(name: string) => any} get
 * @property {(name: string, value: unknown) => void} set
 * @property {() => void} save_changes
 * @property {(content: object) => void} send
 * @property {(event: string, callback: (...values: any[]) => void) => void} on
 * @property {(event: string, callback: (...values: any[]) => void) => void} off
 * @property {{get_model: (id: string) => Promise<Model>}} widget_manager
 */

/** The host's theme: what the page says it is, else what the system prefers. */
export function themeOf(doc = document) {
  const { body, documentElement: root } = doc;
  const jupyter = body?.dataset.jpThemeLight;
  if (jupyter !== undefined) return jupyter === "false" ? "dark" : "light";
  const isOneOf = (/** @type {string[]} */ ...names) =>
    names.some((name) => body?.classList.contains(name));
  if (isOneOf("vscode-light", "vscode-high-contrast-light")) return "light";
  if (isOneOf("vscode-dark", "vscode-high-contrast")) return "dark";
  if (isOneOf("dark", "dark-theme")) return "dark"; // marimo
  const colab = root.getAttribute("theme");
  if (colab === "dark" || colab === "light") return colab;
  return doc.defaultView?.matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
}

/**
 * Have a place follow marimo's theme, which no style sheet in a shadow root can see; returns what
 * ends it.
 * @param {HTMLElement} place
 */
export function followTheme(place) {
  if (!document.querySelector("marimo-filename")) return () => {};
  const draw = () => place.style.setProperty("--ll-scheme", themeOf());
  const observer = new MutationObserver(draw);
  observer.observe(document.body, { attributeFilter: ["class"] });
  draw();
  return () => observer.disconnect();
}

/**
 * Build an element. `attributes` are set as attributes, except `text` (textContent), `on`
 * ({event: handler}) and values null, undefined or false, which are left out.
 * @template {keyof HTMLElementTagNameMap} Tag
 * @param {Tag} tag
 * @param {Record<string, any>} [attributes]
 * @param {...(Node | string)} children
 * @returns {HTMLElementTagNameMap[Tag]}
 */
export function el(tag, attributes = {}, ...children) {
  return furnish(document.createElement(tag), attributes, children);
}

/**
 * The same for SVG.
 * @template {keyof SVGElementTagNameMap} Tag
 * @param {Tag} tag
 * @param {Record<string, any>} [attributes]
 * @param {...(Node | string)} children
 * @returns {SVGElementTagNameMap[Tag]}
 */
export function svg(tag, attributes = {}, ...children) {
  return furnish(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function furnish(node, attributes, children) {
  const { text, on, ...others } = attributes;
  if (text !== undefined) node.textContent = text;
  for (const [event, handler] of Object.entries(on ?? {})) node.addEventListener(event, handler);
  setAttributes(node, others);
  node.append(...children);
  return node;
}

/** Set attributes; those that are null, undefined or false are left out. */
export function setAttributes(node, attributes) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    node.setAttribute(name, value === true ? "" : value);
  }
}

/**
 * The node that has the focus, in a node's page or shadow root.
 * @param {Node} node
 */
export function focusIn(node) {
  const root = /** @type {Document | ShadowRoot} */ (node.getRootNode());
  return /** @type {HTMLElement | null} */ (root.activeElement);
}

/** A button that calls `act`, with more attributes if there are any. */
export function button(text, act, attributes = {}) {
  return el("button", {
    class: "ll-button", type: "button", text, on: act && { click: act }, ...attributes,
  });
}

/** What pushes the rest of its line to the right. */
export function space() {
  return el("span", { class: "ll-space" });
}

/** A title line; parts that are strings get a node of their own. */
export function heading(title, ...parts) {
  const nodes = parts.map((part) => (typeof part === "string" ? el("span", { text: part }) : part));
  return el("div", { class: "ll-head" }, el("span", { class: "ll-title", text: title }), ...nodes);
}

/** A panel's root, whose keys are its own: a notebook's shortcuts must not take what is typed. */
export function section(className, label, ...children) {
  return el("section", {
    class: `ll-panel ${className}`, "aria-label": label, "data-lm-suppress-shortcuts": "true",
    on: { keydown: (event) => event.stopPropagation() },
  }, ...children);
}

/**
 * The button that opens and closes a panel: {node, draw(open), answered()}. Once clicked it is
 * disabled until Python has answered.
 */
export function opener(text, toggle) {
  const node = button(text, () => {
    node.disabled = true;
    toggle();
  });
  const answered = () => {
    node.disabled = false;
  };
  const draw = (open) => {
    answered();
    node.textContent = open ? "Close" : text;
    node.setAttribute("aria-expanded", String(open));
  };
  return { node, draw, answered };
}

/** A bar that fills from the left: {node, draw(value, most, text)}. */
export function progressBar(label) {
  const fill = el("i");
  const node = el("div", {
    class: "ll-progress", role: "progressbar", "aria-label": label, "aria-valuemin": 0,
  }, fill);
  const draw = (value, most, text) => {
    fill.style.width = `${100 * Math.min(1, value / most)}%`;
    setAttributes(node, { "aria-valuenow": value, "aria-valuemax": most, "aria-valuetext": text });
  };
  return { node, draw };
}

/** Mark the one of {name: input} that a problem is about, or none. */
export function markInvalid(inputs, name) {
  for (const [each, input] of Object.entries(inputs)) {
    if (each === name) input.setAttribute("aria-invalid", "true");
    else input.removeAttribute("aria-invalid");
  }
}

/** What one place shows of a panel. A subclass builds nodes, and says what to draw when. */
export class PanelView {
  /**
   * @param {Model} model
   * @param {HTMLElement} host
   * @param {Kernel} kernel
   */
  constructor(model, host, kernel) {
    this.model = model;
    this.kernel = kernel;
    /** @type {(() => void)[]} */
    this.closers = []; // called when the place goes
    this.root = this.build();
    host.append(this.root);
    this.follow();
  }

  /** @returns {HTMLElement} the panel's root */
  build() {
    throw new Error("a panel builds something");
  }

  /** Say with `watch` what is drawn when. */
  follow() {}

  /**
   * Draw now, and again whenever one of these traits changes.
   * @param {() => void} draw
   * @param {...string} traits
   */
  watch(draw, ...traits) {
    this.listen(Object.fromEntries(traits.map((trait) => [`change:${trait}`, draw])));
    draw();
  }

  /** @param {Record<string, (...values: any[]) => void>} handlers by the model's events */
  listen(handlers) {
    this.closers.push(listen(this.model, handlers));
  }

  /**
   * @param {() => void} resize called when a node has a size, and when it gets another
   * @param {HTMLElement} [node] the root where none is named
   */
  watchSize(resize, node = this.root) {
    const observer = new ResizeObserver(resize);
    observer.observe(node);
    this.closers.push(() => observer.disconnect());
  }

  remove() {
    for (const close of this.closers) close();
    this.root.remove();
  }
}

/**
 * What a panel's module exports: each place that shows the panel gets a view of its own. A part of
 * a panel leaves it to the panel to say that the kernel has gone.
 * @param {new (model: Model, host: HTMLElement, kernel: Kernel) => {remove(): void}} View
 */
export function panel(View, { part = false } = {}) {
  return () => { // called once a model
    /** @type {Kernel} */
    let kernel;
    return {
      /** @param {{model: Model}} place */
      initialize({ model }) {
        recover(model.widget_manager);
        kernel = new Kernel(model.widget_manager);
        return () => kernel.close();
      },
      /** @param {{model: Model, el: HTMLElement, signal?: AbortSignal}} place */
      render({ model, el: host, signal }) {
        const view = new View(model, host, kernel);
        const closers = [followTheme(host), part ? () => {} : kernel.show(host)];
        const remove = () => {
          for (const close of closers) close();
          view.remove();
        };
        signal?.addEventListener("abort", remove, { once: true });
        return remove;
      },
    };
  };
}

/**
 * Subscribe to several model events; returns the function that takes all of them off again.
 * @param {Model} model
 * @param {Record<string, (...values: any[]) => void>} handlers
 */
export function listen(model, handlers) {
  for (const [event, handler] of Object.entries(handlers)) model.on(event, handler);
  return () => {
    for (const [event, handler] of Object.entries(handlers)) model.off(event, handler);
  };
}

/** 6144 → "6,144", the same in every locale. */
export function formatCount(n) {
  return String(Math.round(n)).replace(/\B(?=(\d{3})+$)/g, ",");
}

/** Bytes for people: "0 B", "24 KiB", "1.8 MiB", "2.66 GiB": three significant figures. */
export function formatBytes(bytes) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
  let value = Math.abs(bytes);
  let unit = 0;
  while (value >= 1023.5 && unit < units.length - 1) {
    value /= 1024;
    unit += 1;
  }
  const digits = unit === 0 || value >= 99.95 ? 0 : value >= 9.995 ? 1 : 2;
  const text = value.toFixed(digits).replace(/\.0+$/, "");
  return `${bytes < 0 ? "−" : ""}${text} ${units[unit]}`;
}

export const VIRIDIS = [
  [68, 1, 84], [71, 44, 122], [59, 81, 139], [44, 113, 142], [33, 144, 141],
  [39, 173, 129], [92, 200, 99], [170, 220, 50], [253, 231, 37],
];

/** Viridis at t in [0, 1] as [red, green, blue], 0 to 255. */
export function viridis(t) {
  const x = Math.min(1, Math.max(0, t)) * (VIRIDIS.length - 1);
  const i = Math.min(VIRIDIS.length - 2, Math.floor(x));
  return VIRIDIS[i].map((low, k) => Math.round(low + (VIRIDIS[i + 1][k] - low) * (x - i)));
}

/** Black or white, whichever stands out more on [red, green, blue]: at least 4.58:1. */
export function inkOn(rgb) {
  const linear = rgb.map((v) => (v <= 10.31475 ? v / 3294.6 : ((v / 255 + 0.055) / 1.055) ** 2.4));
  const luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
  return luminance > 0.179 ? "#000" : "#fff";
}

/** The color of rank r ≥ 1 on a log₂ scale that reaches its end at 128. */
export function rankColor(r) {
  return viridis(0.12 + (Math.log2(r) / 7) * 0.88);
}

/** Put text on the clipboard; false where the browser forbids it. */
export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // No clipboard API outside https and localhost, nor in some iframes: the old way.
    const area = el("textarea", { class: "ll-sr", "aria-hidden": "true" });
    area.value = text;
    const focused = focusIn(document.body);
    document.body.append(area);
    area.select();
    const copied = document.execCommand("copy");
    area.remove();
    focused?.focus({ preventScroll: true });
    return copied;
  }
}
