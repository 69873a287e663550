// Helpers of every panel. No state here: one page may hold many panels.

/** The host's theme: what the page says it is, else what the system prefers. */
export function themeOf(doc = document) {
  const { body, documentElement: root } = doc;
  const jupyter = body?.dataset.jpThemeLight;
  if (jupyter !== undefined) return jupyter === "false" ? "dark" : "light";
  const classes = body?.classList;
  if (classes?.contains("vscode-light") || classes?.contains("vscode-high-contrast-light")) return "light";
  if (classes?.contains("vscode-dark") || classes?.contains("vscode-high-contrast")) return "dark";
  const colab = root.getAttribute("theme");
  if (colab === "dark" || colab === "light") return colab;
  return doc.defaultView?.matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
}

/**
 * Build an element. `attributes` are set as attributes, except `text` (textContent), `on`
 * ({event: handler}) and values null, undefined or false, which are left out.
 */
export function el(tag, attributes = {}, ...children) {
  return furnish(document.createElement(tag), attributes, children);
}

/** The same for SVG. */
export function svg(tag, attributes = {}, ...children) {
  return furnish(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function furnish(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "text") node.textContent = value;
    else if (name === "on") for (const [event, handler] of Object.entries(value)) node.addEventListener(event, handler);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children);
  return node;
}

/** Subscribe to several model events; returns the function that takes all of them off again. */
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

/** The colour of rank r ≥ 1 on a log₂ scale that reaches its end at 128. */
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
    const focused = document.activeElement;
    document.body.append(area);
    area.select();
    const copied = document.execCommand("copy");
    area.remove();
    focused?.focus({ preventScroll: true });
    return copied;
  }
}
