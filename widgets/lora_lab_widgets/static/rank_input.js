// @ts-check
// What pointer and keys do to the rank grid.
//
// Mouse and pen paint at once. A finger taps to toggle, swipes sideways or holds, then paints;
// an up or down swipe scrolls the page, as the wheel does.
/** @import { RankGridView } from "./rank_grid.js" */
/** @import { Cell } from "./rank_store.js" */
/** @import { Place } from "./rank_table.js" */

import { stepDown, stepUp } from "./rank_store.js";
import { placeOf } from "./rank_table.js";

const TYPING_MS = 600; // digits closer together than this make one number
const HOLD_MS = 350; // a finger that rests this long paints in any direction
const SLIP_PX = 8;
const STEPS = {
  ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1],
  PageUp: [-8, 0], PageDown: [8, 0],
};

export class RankInput {
  /** @param {RankGridView} view */
  constructor(view) {
    this.view = view;
    this.store = view.store;
    this.table = view.table;
    this.typed = { text: "", at: 0, stepped: false }; // the number being typed; made it a step?
    /**
     * Painting with this view's pointer.
     * @type {{value: number, last: Place, pointer: number, capped: number, cells: Cell[]} | null}
     */
    this.stroke = null;
    /**
     * Down, not yet known to paint.
     * @type {{place: Place, x: number, y: number, pointer: number, timer: number} | null}
     */
    this.finger = null;
    const { node } = this.table;
    node.addEventListener("pointerdown", (event) => this.onPointerDown(event));
    node.addEventListener("pointermove", (event) => this.onPointerMove(event));
    node.addEventListener("pointerup", (event) => this.onPointerUp(event));
    node.addEventListener("pointercancel", (event) => this.onPointerCancel(event));
    node.addEventListener("click", (event) => this.onClick(event));
    node.addEventListener("keydown", (event) => this.onKey(event));
    const keepStill = (event) => this.stroke && event.preventDefault();
    node.addEventListener("contextmenu", keepStill);
    // Only a listener that is not passive can keep the page still once a held finger paints.
    node.addEventListener("touchmove", keepStill, { passive: false });
  }

  close() {
    if (this.stroke) this.store.cancel();
    clearTimeout(this.finger?.timer);
  }

  /** The next digit begins a number of its own. */
  endNumber() {
    this.typed.text = "";
  }

  // ---- keys

  /** Undo and redo work from the buttons too; in the number box they are the box's own. */
  onAnyKey(event) {
    const command = (event.ctrlKey || event.metaKey) && !event.altKey;
    if (!command || event.target.matches("input[type=number]")) return;
    const key = event.key.toLowerCase();
    if (key !== "z" && key !== "y") return;
    consume(event);
    this.view.travel(key === "y" || event.shiftKey ? "redo" : "undo");
  }

  onKey(event) {
    if (this.store.painting) {
      if (event.key === "Escape") this.drop();
      consume(event);
      return;
    }
    if (event.altKey) return;
    if (!isDigit(event.key)) this.endNumber();
    const command = event.ctrlKey || event.metaKey;
    if (this.onMoveKey(event, command) || (!command && this.onRankKey(event))) {
      consume(event);
      this.table.setHover(null); // a pointer that rests there hides nothing of where the keys are
    }
  }

  /** Whether the key is one that moves the focus or the selection, which is done then. */
  onMoveKey({ key, shiftKey: extend }, command) {
    const { table } = this;
    if (command && key.toLowerCase() === "a") table.selectAll();
    else if (key === "Escape") {
      if (table.anchor === table.focus) return false;
      table.moveTo(table.focus);
    } else {
      const place = this.placeAfter(key, extend, command);
      if (!place) return false;
      table.moveTo(place, { extend });
    }
    return true;
  }

  /** @returns {Place | null} where a key leads to from the focus */
  placeAfter(key, extend, command) {
    const { anchor, focus } = this.table;
    const last = { row: this.store.rows.length - 1, column: this.store.roles.length - 1 };
    if (key === "Home") return { row: command ? 0 : focus.row, column: 0 };
    if (key === "End") return { row: command ? last.row : focus.row, column: last.column };
    if (!(key in STEPS) || command) return null;
    const [down, right] = STEPS[key];
    // A selection of cells stays among cells; without Shift, the headers are one step further.
    const lowest = {
      row: extend ? Math.min(anchor.row, 0) : focus.column < 0 ? 0 : -1,
      column: extend ? Math.min(anchor.column, 0) : focus.row < 0 ? 0 : -1,
    };
    const top = key === "PageUp" ? 0 : lowest.row;
    return {
      row: Math.min(last.row, Math.max(top, focus.row + down)),
      column: Math.min(last.column, Math.max(lowest.column, focus.column + right)),
    };
  }

  /** Whether the key is one that changes ranks, which is done then. */
  onRankKey({ key, timeStamp }) {
    const { store, view } = this;
    const cells = this.table.picked();
    if (isDigit(key)) this.typeDigit(key, timeStamp);
    else if (["+", "="].includes(key)) view.setRanks(cells, (cell) => stepUp(store.rankOf(cell)));
    else if (["-", "_", "−"].includes(key)) {
      view.setRanks(cells, (cell) => stepDown(store.rankOf(cell)));
    } else if (key === "Delete" || key === "Backspace") view.setRanks(cells, () => 0);
    else if (key === " " || key === "Enter") view.toggle(cells);
    else return false;
    return true;
  }

  typeDigit(digit, now) {
    const { typed, store } = this;
    const more = typed.text !== "" && now - typed.at < TYPING_MS;
    const amend = more && typed.stepped;
    const steps = store.past.length;
    const text = (more ? typed.text : "") + digit;
    this.view.setRanks(this.table.picked(), () => Number(text), { amend });
    const stepped = amend || store.past.length > steps;
    this.typed = { text: Number(text) ? text : "", at: now, stepped };
  }

  // ---- pointer

  onPointerDown(event) {
    const place = placeOf(event.target);
    if (!place || event.button !== 0 || event.ctrlKey || this.store.painting) return;
    if (event.shiftKey) {
      event.preventDefault();
      this.table.moveTo(place, { extend: true });
      return;
    }
    if (place.row < 0 || place.column < 0) return; // a header: its click fills
    const { clientX: x, clientY: y, pointerId: pointer } = event;
    if (event.pointerType !== "touch") this.startStroke(place, pointer);
    else {
      const timer = setTimeout(() => this.liftFinger("paint"), HOLD_MS);
      this.finger = { place, x, y, pointer, timer };
    }
  }

  /** What a finger meant is known: it paints, or it was only there to scroll. */
  liftFinger(meaning) {
    const { finger } = this;
    if (!finger) return;
    clearTimeout(finger.timer);
    this.finger = null;
    if (meaning === "paint") this.startStroke(finger.place, finger.pointer);
  }

  /** Sideways is painting (but in a grid that itself scrolls so), up and down is scrolling. */
  onSlip(across, along) {
    if (Math.max(across, along) <= SLIP_PX) return;
    const scrolls = this.table.node.classList.contains("ll-wide");
    this.liftFinger(across > along && !scrolls ? "paint" : "scroll");
  }

  startStroke(place, pointer) {
    const { store, table, view } = this;
    if (view.locked) {
      table.moveTo(place);
      view.refuse();
      return;
    }
    const cell = store.cellAt(place.row, place.column);
    store.begin();
    const value = cell && view.isAtBrush(cell) ? 0 : view.brush;
    this.stroke = { value, last: place, pointer, capped: 0, cells: [] };
    table.moveTo(place);
    table.node.classList.add("ll-painting");
    table.node.setPointerCapture(pointer);
    this.paintTo(place);
  }

  onPointerMove({ clientX: x, clientY: y, pointerId }) {
    const { finger, table } = this;
    if (finger?.pointer === pointerId) this.onSlip(Math.abs(x - finger.x), Math.abs(y - finger.y));
    if (this.stroke?.pointer !== pointerId) return;
    // Captured events name the grid as their target: ask what lies below the pointer.
    const root = /** @type {Document | ShadowRoot} */ (table.node.getRootNode());
    const place = placeOf(root.elementFromPoint(x, y));
    if (place && place.row >= 0 && place.column >= 0 && table.nodeAt(place)) this.paintTo(place);
  }

  /**
   * Paint all cells on the way: a quick hand skips some between two events.
   * @param {Place} place
   */
  paintTo({ row, column }) {
    const { stroke, store } = this;
    const { last } = stroke;
    const steps = Math.max(1, Math.abs(row - last.row), Math.abs(column - last.column));
    const between = (from, to, i) => Math.round(from + (to - from) * (i / steps));
    for (let i = 0; i <= steps; i += 1) {
      const cell = store.cellAt(between(last.row, row, i), between(last.column, column, i));
      if (!cell || stroke.cells.includes(cell)) continue;
      stroke.cells.push(cell);
      if (store.put(cell, stroke.value)) stroke.capped += 1;
    }
    stroke.last = { row, column };
    this.table.setHover(stroke.last);
    store.show();
  }

  onPointerUp(event) {
    if (this.finger?.pointer === event.pointerId) this.liftFinger("paint");
    const { stroke, view } = this;
    if (stroke?.pointer !== event.pointerId) return;
    this.endStroke();
    if (event.pointerType === "touch") this.table.setHover(null);
    if (!this.store.painting) return; // Python set other ranks meanwhile
    this.store.commit();
    const { capped, cells, value } = stroke;
    if (capped) view.sayCapped(capped, cells);
    else if (!cells.length) view.say("no matrix here to adapt");
    else if (cells.length === 1) view.announce(this.table.nameOf(cells[0]));
    else view.announce(`${cells.length} matrices rank ${value}`);
  }

  onPointerCancel(event) {
    if (this.finger?.pointer === event.pointerId) this.liftFinger("scroll");
    if (this.stroke?.pointer === event.pointerId) this.drop();
  }

  /** Give the stroke in hand up: the ranks are as they were. */
  drop() {
    this.endStroke();
    this.store.cancel();
  }

  endStroke() {
    this.stroke = null;
    this.table.node.classList.remove("ll-painting");
  }

  onClick(event) {
    const place = placeOf(event.target);
    if (!place || event.shiftKey || (place.row >= 0 && place.column >= 0)) return;
    this.table.moveTo(place);
    this.view.toggle(this.table.picked());
  }
}

function isDigit(key) {
  return /^[0-9]$/.test(key);
}

function consume(event) {
  event.preventDefault();
  event.stopPropagation();
}
