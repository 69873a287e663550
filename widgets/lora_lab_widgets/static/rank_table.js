// @ts-check
// The rank grid's cells and headers: building and drawing them, focus, selection, hover.
/** @import { Model } from "./_shared.js" */
/** @import { Cell, RankStore } from "./rank_store.js" */

import { el, focusIn, inkOn, rankColor } from "./_shared.js";

/**
 * A row and a column; −1 is the header's.
 * @typedef {{row: number, column: number}} Place
 */

export class RankTable {
  /**
   * @param {RankStore} store
   * @param {Model} model
   * @param {{moved: () => void, looked: () => void}} on `moved`: the focus is elsewhere; `looked`:
   *   what is described may be another place or selection.
   */
  constructor(store, model, on) {
    this.store = store;
    this.model = model;
    this.on = on;
    /** @type {Place} */
    this.focus = { row: 0, column: 0 };
    this.anchor = this.focus;
    /** @type {Place | null} */
    this.hover = null;
    /** @type {HTMLElement[]} */
    this.lit = [];
    /** @type {Map<string, HTMLElement>} */
    this.nodes = new Map();
    this.drawn = new Map(); // {site: the rank that its cell shows}
    this.node = el("div", {
      role: "grid", class: "ll-rank-grid",
      "aria-label": "ranks, layer by role", "aria-multiselectable": "true",
      on: {
        pointerover: (event) => this.onHover(event),
        pointerleave: () => this.setHover(null),
        focusin: (event) => this.onFocus(event),
        focusout: () => this.on.looked(),
      },
    });
    this.pane = el("div", { class: "ll-rank-scroll" }, this.node);
  }

  build() {
    const { rows, roles } = this.store;
    this.focus = {
      row: Math.min(this.focus.row, rows.length - 1),
      column: Math.min(this.focus.column, roles.length - 1),
    };
    this.anchor = this.focus;
    this.nodes.clear();
    this.drawn.clear();
    const headers = roles.map((role, column) => this.buildCell(-1, column, {
      role: "columnheader", class: "ll-rank-role",
      title: `${role}: fill or clear the column`, text: role,
    }));
    const layer = el("span", { class: "ll-sr", text: "layer" });
    const corner = el("div", { role: "columnheader" }, layer);
    this.node.replaceChildren(
      el("div", { role: "row", class: "ll-rank-row ll-rank-top" }, corner, ...headers),
      ...rows.map((_, row) => this.buildRow(row)),
    );
    this.node.classList.toggle("ll-wide", roles.length > 12);
  }

  buildRow(row) {
    const { rows, roles } = this.store;
    const label = rows[row];
    const gap = row > 0 && stackOf(label) !== stackOf(rows[row - 1]);
    const header = this.buildCell(row, -1, {
      role: "rowheader", class: "ll-rank-layer",
      title: `${layerName(label)}: fill or clear the row`, text: label,
    });
    const cells = roles.map((role, column) => this.buildCell(row, column, {
      role: "gridcell",
      ...(this.store.cellAt(row, column)
        ? { class: "ll-rank-cell" }
        : {
          class: "ll-rank-none", "aria-disabled": "true",
          "aria-label": `${layerName(label)} ${role}: no such matrix`,
        }),
    }));
    const name = gap ? "ll-rank-row ll-rank-stack" : "ll-rank-row";
    return el("div", { role: "row", class: name }, header, ...cells);
  }

  buildCell(row, column, attributes) {
    const node = el("div", { tabindex: -1, "data-row": row, "data-column": column, ...attributes });
    this.nodes.set(`${row},${column}`, node);
    return node;
  }

  nodeAt({ row, column }) {
    return this.nodes.get(`${row},${column}`);
  }

  /** @param {Cell} cell */
  placeOf(cell) {
    return { row: cell.row, column: this.store.roles.indexOf(cell.role) };
  }

  repaint() {
    for (const cell of this.store.cells) {
      const rank = this.store.shownRank(cell);
      if (this.drawn.get(cell.site) === rank) continue;
      this.drawn.set(cell.site, rank);
      const node = this.nodeAt(this.placeOf(cell));
      node.textContent = rank || "";
      node.setAttribute("aria-label", this.nameOf(cell));
      tint(node, rank);
    }
  }

  nameOf(cell) {
    const label = this.store.rows[cell.row];
    return `${layerName(label)} ${cell.role} rank ${this.store.shownRank(cell)}`;
  }

  // ---- focus, selection, hover

  placeFocus(grab = false) {
    this.tabbable?.setAttribute("tabindex", "-1");
    this.tabbable = this.nodeAt(this.focus);
    this.tabbable?.setAttribute("tabindex", "0");
    if (grab) this.tabbable?.focus();
    this.showSelection();
  }

  /**
   * @param {Place} place
   * @param {{extend?: boolean, grab?: boolean}} [how] extend the selection; take the page's focus
   */
  moveTo({ row, column }, { extend = false, grab = true } = {}) {
    this.on.moved();
    this.focus = { row, column };
    if (!extend) this.anchor = this.focus;
    const cell = this.store.cellAt(row, column);
    if (cell && !extend) this.store.select(cell.site);
    this.placeFocus(grab);
  }

  selectAll() {
    const { rows, roles } = this.store;
    this.anchor = { row: 0, column: 0 };
    this.moveTo({ row: rows.length - 1, column: roles.length - 1 }, { extend: true });
  }

  showSelection() {
    const picked = this.picked();
    const inside = new Set(picked.length > 1 ? picked.map((cell) => cell.site) : []);
    const selected = this.model.get("selected");
    for (const cell of this.store.cells) {
      const node = this.nodeAt(this.placeOf(cell));
      node.classList.toggle("ll-picked", inside.has(cell.site));
      node.classList.toggle("ll-selected", cell.site === selected);
      const isSelected = inside.has(cell.site) || cell.site === selected;
      node.setAttribute("aria-selected", String(isSelected));
    }
    this.on.looked();
  }

  selectedAt() {
    const cell = this.store.cells.find(({ site }) => site === this.model.get("selected"));
    return cell && this.placeOf(cell);
  }

  /** `selected` moved, here or elsewhere: keep Tab's way in at the same place in every view. */
  followSelected(painting) {
    const place = this.selectedAt();
    if (place && !this.focused && !painting) {
      this.focus = this.anchor = place;
      this.placeFocus();
    } else this.showSelection();
  }

  get focused() {
    return this.node.contains(focusIn(this.node));
  }

  /**
   * The adaptable cells of a rectangle; a header stands for its whole row or column.
   * @param {Place} a
   * @param {Place} b
   */
  cellsIn(a, b) {
    const [top, bottom] = rangeOf(a.row, b.row, this.store.rows.length);
    const [left, right] = rangeOf(a.column, b.column, this.store.roles.length);
    return this.store.cells.filter((cell) => {
      const { row, column } = this.placeOf(cell);
      return row >= top && row <= bottom && column >= left && column <= right;
    });
  }

  picked() {
    return this.cellsIn(this.anchor, this.focus);
  }

  onFocus({ target }) {
    const place = placeOf(target);
    if (place && (place.row !== this.focus.row || place.column !== this.focus.column)) {
      this.moveTo(place, { grab: false });
    } else this.on.looked();
  }

  onHover(event) {
    if (event.pointerType !== "touch") this.setHover(placeOf(event.target));
  }

  setHover(place) {
    for (const node of this.lit) node.classList.remove("ll-lit");
    this.hover = place;
    const headers = place ? [{ ...place, row: -1 }, { ...place, column: -1 }] : [];
    this.lit = headers.map((header) => this.nodeAt(header)).filter((node) => node !== undefined);
    for (const node of this.lit) node.classList.add("ll-lit");
    this.on.looked();
  }
}

function rangeOf(from, to, length) {
  return Math.min(from, to) < 0 ? [0, length - 1] : [Math.min(from, to), Math.max(from, to)];
}

/** The row and column of the cell or header that a node belongs to, or null. */
export function placeOf(node) {
  const cell = node?.closest?.("[data-row]");
  return cell ? { row: Number(cell.dataset.row), column: Number(cell.dataset.column) } : null;
}

/** "3" → "layer 3", "enc 3" → "enc 3". */
export function layerName(label) {
  return /^\d+$/.test(label) ? `layer ${label}` : label;
}

/** "enc 3" → "enc", "3" → "". */
export function stackOf(label) {
  return label.replace(/\s*\d+$/, "");
}

/** Give a node the color of a rank. */
export function tint(node, rank) {
  const rgb = rank > 0 ? rankColor(rank) : null;
  node.style.background = rgb ? `rgb(${rgb})` : "";
  node.style.color = rgb ? inkOn(rgb) : "";
  node.classList.toggle("ll-on", Boolean(rgb));
}
