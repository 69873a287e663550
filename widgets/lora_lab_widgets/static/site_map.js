// @ts-check
// A heat map, layers to the right and roles downwards. Draws `values` over `sites`: both `values`
// and `ranks` hold one number a site, in the order of `sites`, or null.

import { PanelView, VIRIDIS, el, heading, panel, section, space, viridis } from "./_shared.js";
import { term } from "./term.js";

const VALUE_TEXT = "effective rank";
const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

class SiteMapView extends PanelView {
  build() {
    const { model } = this;
    this.rows = model.get("rows");
    this.roles = model.get("roles");
    this.cells = new Map(); // {the site's name: {node, label, row, role, index}}
    this.names = new Map(); // {"row,role": the site's name}
    this.drawn = new Map(); // {the site's name: what its cell shows}
    this.hovered = null;
    this.grid = this.buildGrid();
    this.caption = el("div", { class: "ll-map-caption" });
    this.top = el("span");
    const ramp = el("i", { class: "ll-map-ramp" });
    const colors = VIRIDIS.map((color) => `rgb(${color})`);
    ramp.style.background = `linear-gradient(90deg, ${colors.join(", ")})`;
    const key = el("div", { class: "ll-map-key ll-dim", "aria-hidden": "true" },
      el("i", { class: "ll-map-none" }), "no ΔW", el("span", { text: "0" }), ramp, this.top);
    return section("ll-map-panel", "effective rank of every matrix",
      heading("Effective rank", term("effective-rank"), "of ΔW, layer →", space(), key),
      this.grid, this.caption);
  }

  follow() {
    this.watch(() => this.draw(), "values", "ranks");
    this.watch(() => this.drawSelected(), "selected");
    this.watchSize(() => this.drawAxis());
  }

  buildGrid() {
    const { rows, roles, cells, names } = this;
    this.model.get("sites").forEach(([name, label, row, role], index) => {
      const node = el("div", {
        class: "ll-map-cell", role: "gridcell", tabindex: -1, "data-site": name,
      });
      cells.set(name, { node, label, row, role, index });
      names.set(`${row},${role}`, name);
    });
    const cellAt = (row, role) => cells.get(names.get(`${row},${role}`))?.node
      ?? el("div", { role: "gridcell", "aria-label": "no such matrix" });
    const lines = roles.map((role, i) => el("div", { class: "ll-map-row", role: "row" },
      el("div", { class: "ll-map-role", role: "rowheader", text: role }),
      ...rows.map((_, row) => cellAt(row, i))));
    this.axis = el("div", { class: "ll-map-axis", "aria-hidden": "true" });
    const hover = (event) => this.hover(nameOf(event));
    const leave = () => this.hover(null);
    const grid = el("div", {
      class: "ll-map", role: "grid", "aria-label": `${VALUE_TEXT} of ΔW, layers across, roles down`,
      "aria-readonly": "true",
      on: {
        click: (event) => this.onClick(event),
        keydown: (event) => this.onKey(event),
        pointerover: hover, pointerleave: leave, focusin: hover, focusout: leave,
      },
    }, ...lines, this.axis);
    grid.style.gridTemplateColumns = `max-content repeat(${rows.length}, minmax(0, 1fr))`;
    return grid;
  }

  // ---- drawing

  draw() {
    const values = this.model.get("values");
    const limit = Math.max(1, ...this.model.get("ranks"), ...values);
    this.top.textContent = Number.isInteger(limit) ? String(limit) : limit.toFixed(1);
    for (const [name, { node, index }] of this.cells) {
      const text = this.describe(name);
      const look = `${text}/${limit}`;
      if (this.drawn.get(name) === look) continue;
      this.drawn.set(name, look);
      const value = values[index] ?? null;
      node.setAttribute("aria-label", text);
      node.style.background = value === null ? "" : `rgb(${viridis(value / limit)})`;
      node.toggleAttribute("data-ll-value", value !== null);
    }
    this.drawCaption();
  }

  describe(name) {
    const { label, index } = this.cells.get(name);
    const value = this.model.get("values")[index] ?? null;
    const rank = this.model.get("ranks")[index];
    if (value !== null) {
      return `${label} · ${VALUE_TEXT} ${value.toFixed(1)}${rank ? ` of ${rank}` : ""}`;
    }
    return rank ? `${label} · rank ${rank}, not trained yet` : `${label} · no adapter`;
  }

  drawCaption() {
    const name = this.hovered ?? this.model.get("selected");
    this.caption.textContent = this.cells.has(name)
      ? this.describe(name)
      : "click a cell, or use the arrow keys";
  }

  drawSelected() {
    const { cells } = this;
    const selected = this.model.get("selected");
    const tabbable = cells.has(selected) ? selected : cells.keys().next().value;
    for (const [name, { node }] of cells) {
      node.tabIndex = name === tabbable ? 0 : -1;
      node.setAttribute("aria-selected", String(name === selected));
    }
    this.drawCaption();
  }

  drawAxis() {
    const { rows } = this;
    const room = this.grid.clientWidth / Math.max(1, rows.length);
    const widest = Math.max(...rows.map((row) => row.length)) * 7 + 8;
    const every = [1, 2, 5, 10, 20, 50, 100].find((n) => n * room >= widest) ?? 200;
    this.axis.replaceChildren(
      el("span"), ...rows.map((row, i) => el("span", { text: i % every ? "" : row })));
  }

  // ---- what people do

  select(name) {
    this.model.set("selected", name); // the page's other views follow at once
    this.model.send({ type: "select", site: name });
  }

  hover(name) {
    this.hovered = name;
    this.drawCaption();
  }

  onClick(event) {
    const name = nameOf(event);
    if (name) this.select(name);
  }

  onKey(event) {
    const name = nameOf(event);
    if (!name || event.ctrlKey || event.metaKey || event.altKey) return;
    const target = this.targetOf(name, event.key);
    if (!target) return;
    event.preventDefault();
    this.cells.get(target).node.focus();
    this.select(target);
  }

  /** The site that a key leads to from another, or undefined: the key means nothing here. */
  targetOf(name, key) {
    if (key === "Enter" || key === " ") return name;
    const { role } = this.cells.get(name);
    const line = [...this.cells.keys()].filter((each) => this.cells.get(each).role === role);
    if (key === "Home") return line[0];
    if (key === "End") return line.at(-1);
    return key in STEPS ? this.neighborOf(name, STEPS[key]) : undefined;
  }

  /** The next site in a direction, or the same at the map's end; a hole is stepped over. */
  neighborOf(name, [right, down]) {
    let { row, role } = this.cells.get(name);
    for (;;) {
      row += right;
      role += down;
      if (row < 0 || role < 0 || row >= this.rows.length || role >= this.roles.length) return name;
      const found = this.names.get(`${row},${role}`);
      if (found) return found;
    }
  }
}

/** The site of the cell that an event is about, or null. */
function nameOf(event) {
  return event.target.closest?.(".ll-map-cell")?.dataset.site ?? null;
}

export default panel(SiteMapView);
