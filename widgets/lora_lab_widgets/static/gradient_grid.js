// @ts-check
// Gradient norms as colors, layer × role, with the rank that is proposed in each cell.

import { VIRIDIS, button, el, inkOn, space, viridis } from "./_shared.js";

/**
 * {node, draw(layers, painted)}. `paint` is called with the plan that the grid shall take.
 * @param {(plan: string) => void} paint
 */
export function gradientGrid(paint) {
  const line = el("div");
  const table = el("table", { class: "ll-gradients", "aria-label": "gradient norms and ranks" });
  const scroll = el("div", {
    class: "ll-advice-scroll", tabindex: 0, role: "region", "aria-label": "which layers",
  }, table);
  const ramp = el("i", { class: "ll-map-ramp" });
  ramp.style.background =
    `linear-gradient(90deg, ${VIRIDIS.map((color) => `rgb(${color})`).join(", ")})`;
  const top = el("span");
  const key = el("span", { class: "ll-gradients-key ll-dim", "aria-hidden": "true" },
    "gradient norm 0", ramp, top);
  const buttons = {
    proposed: button("Paint the proposed ranks", () => paint("proposed")),
    uniform: button("Paint the uniform ones", () => paint("uniform")),
  };
  const caption = el("div", { class: "ll-dim", text: "in each cell: r proposed (uniform)" });
  const notes = el("ul", { class: "ll-advice-notes ll-dim" });
  const node = el("div", { hidden: true },
    line, el("div", { class: "ll-bar" }, buttons.proposed, buttons.uniform, space(), key),
    caption, scroll, notes);
  const draw = (layers, painted) => {
    node.hidden = !layers.cells;
    for (const [plan, each] of Object.entries(buttons)) {
      each.setAttribute("aria-pressed", String(plan === painted));
    }
    if (!layers.cells) return;
    line.textContent = `${layers.of}: ${layers.line}`;
    const largest = Math.max(...layers.cells.map(([, , , norm]) => norm));
    top.textContent = String(largest);
    notes.replaceChildren(...layers.notes.map((text) => el("li", { text })));
    table.replaceChildren(...lines(layers));
  };
  return { node, draw };
}

function lines({ rows, roles, cells }) {
  const at = new Map(cells.map((cell) => [`${cell[0]},${cell[1]}`, cell]));
  const head = el("thead", {}, el("tr", {}, el("th", { scope: "col", text: "layer" }),
    ...roles.map((role) => el("th", { scope: "col", text: role }))));
  const body = el("tbody", {}, ...rows.map((label, row) => el("tr", {},
    el("th", { scope: "row", text: label }),
    ...roles.map((role, column) => cellNode(`${label} · ${role}`, at.get(`${row},${column}`))))));
  return [head, body];
}

function cellNode(name, cell) {
  if (!cell) return el("td", { "aria-label": `${name}: no gradient was measured`, text: "–" });
  const [, , share, norm, r, uniform] = cell;
  const color = viridis(share);
  const node = el("td", {
    title: `${name}: gradient norm ${norm}, r ${r} (uniform ${uniform})`,
    text: `${r} (${uniform})`,
  });
  node.style.background = `rgb(${color})`;
  node.style.color = inkOn(color);
  return node;
}
