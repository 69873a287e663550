// The rank grid: rows are layers, columns are roles, a cell shows its rank as number and colour.
//
// Mouse and pen paint at once. A finger taps to toggle, swipes sideways or holds, then paints;
// an up or down swipe scrolls the page, as the wheel does. See rank_store.js for what views share.

import { copyText, el, formatBytes, formatCount, inkOn, listen, rankColor } from "./_shared.js";
import { RankStore, sameRanks, stepDown, stepUp } from "./rank_store.js";

const BRUSHES = [1, 2, 4, 8, 16, 32, 64];
const TYPING_MS = 600; // digits closer together than this make one number
const HOLD_MS = 350; // a finger that rests this long paints in any direction
const SLIP_PX = 8;
const NOTE_MS = 5000;
const LONG = 32; // rows that show without scrolling inside
const LOCKED = "locked while it trains";
const MOVED = "what AdaLoRA has left of every matrix's rank";
const HELP = "click or drag to paint; arrow keys, 1–9, + and −, Shift to select";

class RankGridView {
  constructor(store, model, root) {
    Object.assign(this, { store, model, root });
    this.focus = { row: 0, column: 0 };
    this.anchor = this.focus;
    this.hover = null;
    this.typed = { text: "", at: 0, stepped: false }; // the number being typed; has it made a step?
    this.stroke = null; // {value, last, pointer}: painting with this view's pointer
    this.finger = null; // {cell, x, y, timer, pointer}: down, not yet known to paint
    this.id = `ll-${Math.random().toString(36).slice(2)}`;
    root.classList.add("ll-panel", "ll-ranks");
    root.dataset.lmSuppressShortcuts = "true"; // else JupyterLab's command mode takes our keys
    root.addEventListener("keydown", (event) => this.onAnyKey(event));

    this.brushes = el("div", { class: "ll-brushes", role: "radiogroup", "aria-label": "brush: rank to paint" });
    this.table = el("div", {
      role: "grid",
      class: "ll-rank-grid",
      "aria-label": "ranks, layer by role",
      "aria-multiselectable": "true",
      on: {
        pointerdown: (event) => this.onPointerDown(event),
        pointermove: (event) => this.onPointerMove(event),
        pointerup: (event) => this.onPointerUp(event),
        pointercancel: (event) => this.onPointerCancel(event),
        pointerover: (event) => this.onHover(event),
        pointerleave: () => this.setHover(null),
        click: (event) => this.onClick(event),
        contextmenu: (event) => this.stroke && event.preventDefault(),
        keydown: (event) => this.onKey(event),
        focusin: (event) => this.onFocus(event),
      },
    });
    // Only a listener that is not passive can keep the page still once a held finger paints.
    this.table.addEventListener("touchmove", (event) => this.stroke && event.preventDefault(), { passive: false });
    this.about = el("div", { class: "ll-rank-line" });
    this.totals = el("span", { class: "ll-rank-totals" });
    this.note = el("span", { class: "ll-rank-note" });
    this.turn = el("button", { type: "button", class: "ll-rank-turn", hidden: true, on: { click: () => this.store.turn() } });
    this.live = el("div", { class: "ll-sr", "aria-live": "polite" });
    this.tools = this.buildButtons();
    this.pane = el("div", { class: "ll-rank-scroll" }, this.table);
    root.replaceChildren(
      el("div", { class: "ll-head" }, el("span", { class: "ll-title", text: "Ranks" }), el("span", { class: "ll-space" }), this.brushes),
      this.pane,
      this.about,
      el("div", { class: "ll-rank-line ll-dim" }, this.totals, this.note, this.turn),
      this.tools,
      this.live,
    );
    this.unlisten = listen(model, {
      "change:locked": () => this.onLock(),
      "change:inert": () => this.onInert(),
      "change:rank": () => this.buildBrushes(),
      "change:selected": () => this.followSelected(),
      "change:code": () => this.showButtons(),
      "change:coded_ranks": () => this.finishCopy(),
      "change:bytes_per_parameter": () => this.showLines(),
    });
    store.views.add(this);
    this.build();
  }

  remove() {
    this.unlisten();
    if (this.stroke) this.store.cancel();
    this.store.views.delete(this);
    for (const timer of [this.noteTimer, this.finger?.timer]) clearTimeout(timer);
  }

  // ---- building

  build() {
    const { rows, roles } = this.store;
    this.focus = { row: Math.min(this.focus.row, rows.length - 1), column: Math.min(this.focus.column, roles.length - 1) };
    this.anchor = this.focus;
    this.nodes = new Map();
    this.shown = new Map();
    const cell = (row, column, attributes) => {
      const node = el("div", { tabindex: -1, "data-row": row, "data-column": column, ...attributes });
      this.nodes.set(`${row},${column}`, node);
      return node;
    };
    const lines = [
      el("div", { role: "row", class: "ll-rank-row ll-rank-top" },
        el("div", { role: "columnheader", "aria-label": "layer" }),
        ...roles.map((role, column) => cell(-1, column, { role: "columnheader", class: "ll-rank-role", title: `${role}: fill or clear the column`, text: role }))),
    ];
    rows.forEach((label, row) => {
      const gap = row > 0 && stackOf(label) !== stackOf(rows[row - 1]);
      lines.push(
        el("div", { role: "row", class: gap ? "ll-rank-row ll-rank-stack" : "ll-rank-row" },
          cell(row, -1, { role: "rowheader", class: "ll-rank-layer", title: `${layerName(label)}: fill or clear the row`, text: label }),
          ...roles.map((role, column) => {
            if (this.store.cellAt(row, column)) return cell(row, column, { role: "gridcell", class: "ll-rank-cell" });
            const name = `${layerName(label)} ${role}: no such matrix`;
            return cell(row, column, { role: "gridcell", class: "ll-rank-none", "aria-disabled": "true", "aria-label": name });
          })),
      );
    });
    this.table.replaceChildren(...lines);
    this.table.classList.toggle("ll-wide", roles.length > 12);
    this.table.parentElement.classList.toggle("ll-long", rows.length > LONG);
    this.root.style.setProperty("--ll-columns", roles.length);
    this.root.style.setProperty("--ll-rank-label", `${Math.max(2, ...rows.map((label) => label.length)) + 1.5}ch`);
    this.buildBrushes();
    this.followSelected();
    this.onLock();
    this.onInert();
    this.repaint();
    this.placeFocus();
  }

  buildBrushes() {
    const rank = this.model.get("rank");
    const ranks = [...new Set([...BRUSHES, rank])].sort((a, b) => a - b);
    const focused = this.brushes.contains(document.activeElement);
    this.brushes.replaceChildren(
      el("span", { text: "brush", "aria-hidden": "true" }),
      ...ranks.map((r) => {
        const input = el("input", { type: "radio", name: this.id, class: "ll-sr", "aria-label": `rank ${r}`, on: { change: () => this.setBrush(r) } });
        input.checked = r === rank;
        const swatch = el("label", { class: "ll-brush", text: r, title: `paint rank ${r}` }, input);
        tint(swatch, r);
        return swatch;
      }),
    );
    if (focused) this.brushes.querySelector("input:checked").focus();
    this.showButtons?.();
  }

  buildButtons() {
    const button = (key, text, title, act) => {
      const node = el("button", { type: "button", class: "ll-button", text, title, on: { click: () => node.getAttribute("aria-disabled") !== "true" && act() } });
      this.buttons[key] = node;
      return node;
    };
    this.buttons = {};
    const layers = el("input", { type: "number", class: "ll-rank-n", value: 4, min: 1, step: 1, "aria-label": "how many layers" });
    const last = () => this.paintLast(Number(layers.value));
    layers.addEventListener("keydown", (event) => event.key === "Enter" && last());
    const preset = (key, text, title, plan) => button(key, text, title, () => this.preset(text, plan));
    const role = (cell) => cell.role.split(".").at(-1);
    return el("div", { class: "ll-bar" },
      preset("paper", "paper: q,v r=8", "rank 8 on q and v of every layer, nothing else (Hu et al., 2022)", (cell) => (["q", "v"].includes(cell.role) ? 8 : 0)),
      preset("all", "all linear", "the brush's rank on every matrix", () => this.model.get("rank")),
      preset("attention", "attention", "the brush's rank on q, k, v and o, nothing else", (cell) => (["q", "k", "v", "o"].includes(role(cell)) ? this.model.get("rank") : 0)),
      el("span", { class: "ll-rank-last" }, button("last", "last", "the brush's rank on every matrix of the last layers, nothing else", last), layers, el("span", { text: "layers" })),
      preset("clear", "clear", "no ranks at all", () => 0),
      el("span", { class: "ll-rank-travel" },
        button("undo", "↶ undo", "Ctrl+Z", () => this.travel("undo")),
        button("redo", "↷ redo", "Ctrl+Shift+Z", () => this.travel("redo")),
        button("copy", "copy as Python", "copy the config that the workbench shows", () => this.copy())),
    );
  }

  // ---- showing

  repaint() {
    const { store } = this;
    for (const cell of store.cells) {
      const rank = store.shownRank(cell);
      if (this.shown.get(cell.site) === rank) continue;
      this.shown.set(cell.site, rank);
      const node = this.nodes.get(`${cell.row},${store.roles.indexOf(cell.role)}`);
      node.textContent = rank || "";
      node.setAttribute("aria-label", this.nameOf(cell));
      tint(node, rank);
    }
    this.showLock();
    this.showLines();
    this.showButtons();
  }

  nameOf(cell) {
    return `${layerName(this.store.rows[cell.row])} ${cell.role} rank ${this.store.shownRank(cell)}`;
  }

  showLines() {
    const { store } = this;
    const used = store.cells.filter((cell) => store.shownRank(cell));
    const count = `${formatCount(used.length)} of ${formatCount(store.cells.length)} matrices`;
    this.totals.textContent = store.live?.text ?? `${count}, ${this.price(used)}`;
    this.totals.classList.toggle("ll-rank-live", Boolean(store.live));
    if (this.model.get("inert")) {
      this.about.textContent = this.model.get("inert");
      this.totals.textContent = "";
      return;
    }
    const picked = this.picked();
    const at = this.hover ?? (picked.length > 1 ? null : this.focused ? this.focus : this.selectedAt());
    this.about.textContent = at ? this.describe(at) : picked.length > 1 ? `${picked.length} matrices selected: ${this.price(picked)}` : store.live ? MOVED : HELP;
  }

  describe({ row, column }) {
    const { store } = this;
    if (row < 0 || column < 0) {
      const cells = this.cellsIn({ row, column }, { row, column });
      const name = row < 0 ? store.roles[column] : layerName(store.rows[row]);
      return `${name} · ${cells.length} matrices · ${this.price(cells)}`;
    }
    const cell = store.cellAt(row, column);
    if (!cell) return `${layerName(store.rows[row])} · ${store.roles[column]} · no such matrix`;
    const rank = store.shownRank(cell);
    const worth = rank ? `r ${rank} → ${this.price([cell])}` : `frozen, rank up to ${cell.max_rank}`;
    return `${layerName(store.rows[row])} · ${cell.role} · ${cell.shape[0]} × ${cell.shape[1]} · ${worth}`;
  }

  price(cells) {
    const parameters = cells.reduce((sum, cell) => sum + this.store.shownRank(cell) * (cell.shape[0] + cell.shape[1]), 0);
    return `${formatCount(parameters)} parameters, ${formatBytes(parameters * this.model.get("bytes_per_parameter"))}`;
  }

  showButtons() {
    const { buttons, store, locked } = this;
    this.turn.hidden = !store.hasLive || Boolean(this.model.get("inert"));
    this.turn.textContent = store.planned ? "show these ranks" : "show the plan";
    this.turn.title = store.planned ? "the ranks that AdaLoRA has made of the plan" : "the ranks as they were painted";
    const roles = new Set(store.roles.map((role) => role.split(".").at(-1)));
    const dead = {
      paper: locked || !(store.roles.includes("q") && store.roles.includes("v")),
      all: locked,
      attention: locked || !["q", "k", "v", "o"].some((role) => roles.has(role)),
      last: locked,
      clear: locked || !Object.keys(store.ranks).length,
      undo: locked || !store.past.length,
      redo: locked || !store.future.length,
    };
    for (const [key, value] of Object.entries(dead)) buttons[key].setAttribute("aria-disabled", String(value));
    buttons.copy.hidden = !this.model.get("code");
    for (const input of this.brushes.querySelectorAll("input")) input.disabled = locked;
  }

  say(text, { shown = true } = {}) {
    this.live.textContent = text;
    if (!shown) return;
    clearTimeout(this.noteTimer);
    this.note.textContent = text;
    this.noteTimer = setTimeout(() => this.rest(), NOTE_MS);
  }

  // ---- focus, selection, hover

  placeFocus(grab = false) {
    this.tabbable?.setAttribute("tabindex", "-1");
    this.tabbable = this.nodes.get(`${this.focus.row},${this.focus.column}`);
    this.tabbable?.setAttribute("tabindex", "0");
    if (grab) this.tabbable?.focus();
    this.showSelection();
  }

  moveTo(row, column, { extend = false, grab = true } = {}) {
    this.typed.text = "";
    this.focus = { row, column };
    if (!extend) this.anchor = this.focus;
    const cell = this.store.cellAt(row, column);
    if (cell && !extend) this.store.select(cell.site);
    this.placeFocus(grab);
  }

  showSelection() {
    const several = this.picked().length > 1;
    const inside = new Set(several ? this.picked().map((cell) => cell.site) : []);
    const selected = this.model.get("selected");
    for (const cell of this.store.cells) {
      const node = this.nodes.get(`${cell.row},${this.store.roles.indexOf(cell.role)}`);
      node.classList.toggle("ll-picked", inside.has(cell.site));
      node.classList.toggle("ll-selected", cell.site === selected);
      node.setAttribute("aria-selected", String(inside.has(cell.site) || cell.site === selected));
    }
    this.showLines();
  }

  selectedAt() {
    const cell = this.store.cells.find(({ site }) => site === this.model.get("selected"));
    return cell && { row: cell.row, column: this.store.roles.indexOf(cell.role) };
  }

  /** `selected` moved, here or elsewhere: keep Tab's way in at the same place in every view. */
  followSelected() {
    const at = this.selectedAt();
    if (at && !this.focused && !this.stroke) {
      this.focus = this.anchor = at;
      this.placeFocus();
    } else this.showSelection();
  }

  get focused() {
    return this.table.contains(this.table.getRootNode().activeElement);
  }

  /** The adaptable cells of a rectangle; a header stands for its whole row or column. */
  cellsIn(a, b) {
    const { rows, roles } = this.store;
    const range = (from, to, length) => (Math.min(from, to) < 0 ? [0, length - 1] : [Math.min(from, to), Math.max(from, to)]);
    const [top, bottom] = range(a.row, b.row, rows.length);
    const [left, right] = range(a.column, b.column, roles.length);
    return this.store.cells.filter((cell) => {
      const column = roles.indexOf(cell.role);
      return cell.row >= top && cell.row <= bottom && column >= left && column <= right;
    });
  }

  picked() {
    return this.cellsIn(this.anchor, this.focus);
  }

  onFocus({ target }) {
    const at = placeOf(target);
    if (!at || (at.row === this.focus.row && at.column === this.focus.column)) return this.showLines();
    this.moveTo(at.row, at.column, { grab: false });
  }

  onHover(event) {
    if (event.pointerType !== "touch") this.setHover(placeOf(event.target));
  }

  setHover(at) {
    for (const node of this.lit ?? []) node.classList.remove("ll-lit");
    this.hover = at;
    this.lit = at ? [`-1,${at.column}`, `${at.row},-1`].map((key) => this.nodes.get(key)).filter(Boolean) : [];
    for (const node of this.lit) node.classList.add("ll-lit");
    this.showLines();
  }

  // ---- changing ranks

  /** Nothing can be painted: a run trains with these ranks, or others than the plan are on show. */
  get locked() {
    return this.model.get("locked") || Boolean(this.store.live);
  }

  /** What the note says while nothing happens. */
  get resting() {
    const told = this.store.live || this.model.get("inert");
    return this.model.get("locked") && !told ? LOCKED : "";
  }

  rest() {
    clearTimeout(this.noteTimer);
    this.noteTimer = null;
    this.note.textContent = this.resting;
  }

  onLock() {
    if (this.locked) this.drop();
    this.showLock();
    this.rest();
    if (this.nodes) this.showButtons();
  }

  showLock() {
    if (!this.noteTimer) this.rest();
    this.root.classList.toggle("ll-locked", this.locked);
    this.table.setAttribute("aria-readonly", String(this.locked));
  }

  refuse() {
    if (this.model.get("locked")) this.say(`${LOCKED}: stop it to change ranks`);
    else if (this.store.live) this.say("show the plan to change it");
    return this.locked;
  }

  /** The method has no ranks: pale, and neither pointer nor keyboard reach it. */
  onInert() {
    const inert = Boolean(this.model.get("inert"));
    if (inert) this.drop();
    const { copy } = this.buttons; // every method has its config
    const tools = [...this.tools.children, ...copy.parentElement.children].filter((node) => !node.contains(copy));
    for (const node of [this.brushes, this.pane, ...tools]) node.inert = inert;
    this.rest();
    this.showLines();
    this.showButtons();
  }

  setRanks(cells, rankFor, options) {
    if (this.refuse()) return;
    if (!cells.length) return void this.say("no matrix here to adapt");
    const capped = this.store.apply(cells, rankFor, options);
    const text = cells.length === 1 ? this.nameOf(cells[0]) : `${cells.length} matrices changed`;
    if (capped) this.sayCapped(capped, cells);
    else this.say(text, { shown: false });
  }

  sayCapped(capped, cells) {
    const most = [...new Set(cells.map((cell) => cell.max_rank))];
    this.say(most.length === 1 ? `capped at ${most[0]} = min(out, in)` : `${capped} capped at min(out, in)`);
  }

  isAtBrush(cell) {
    return this.store.rankOf(cell) === Math.min(this.model.get("rank"), cell.max_rank);
  }

  /** 0 ↔ the brush's rank; several cells go together: to the brush unless all are there. */
  toggle(cells) {
    const rank = cells.every((cell) => this.isAtBrush(cell)) ? 0 : this.model.get("rank");
    this.setRanks(cells, () => rank);
  }

  typeDigit(digit, now) {
    const { typed, store } = this;
    const more = typed.text !== "" && now - typed.at < TYPING_MS;
    const amend = more && typed.stepped;
    const steps = store.past.length;
    const text = (more ? typed.text : "") + digit;
    this.setRanks(this.picked(), () => Number(text), { amend });
    this.typed = { text: Number(text) ? text : "", at: now, stepped: amend || store.past.length > steps };
  }

  preset(text, plan) {
    if (this.refuse()) return;
    const capped = this.store.apply(this.store.cells, plan);
    if (capped) this.sayCapped(capped, this.store.cells.filter((cell) => plan(cell) > cell.max_rank));
    else this.say(text, { shown: false });
  }

  paintLast(count) {
    if (!Number.isInteger(count) || count < 1) return this.say("how many layers? a whole number, 1 or more");
    const { rows } = this.store;
    const kept = new Set(); // of an encoder and a decoder, the last layers of each
    for (const stack of new Set(rows.map(stackOf))) {
      const own = rows.map((label, row) => ({ label, row })).filter(({ label }) => stackOf(label) === stack);
      for (const { row } of own.slice(-count)) kept.add(row);
    }
    this.preset(`last ${count} layers`, (cell) => (kept.has(cell.row) ? this.model.get("rank") : 0));
  }

  travel(way) {
    if (this.refuse()) return;
    this.typed.text = "";
    this.say(this.store[way]() ? `${way}: done` : `nothing to ${way}`, { shown: false });
  }

  setBrush(rank) {
    this.model.set("rank", rank);
    this.model.save_changes();
  }

  // ---- keys

  /** Undo and redo work from the buttons too; in the number box they are the box's own. */
  onAnyKey(event) {
    if (!(event.ctrlKey || event.metaKey) || event.altKey || event.target.matches("input[type=number]")) return;
    const key = event.key.toLowerCase();
    if (key !== "z" && key !== "y") return;
    taken(event);
    this.travel(key === "y" || event.shiftKey ? "redo" : "undo");
  }

  onKey(event) {
    if (this.store.painting) {
      if (event.key === "Escape") this.drop();
      return taken(event);
    }
    if (event.altKey) return;
    if (!isDigit(event.key)) this.typed.text = "";
    const command = event.ctrlKey || event.metaKey;
    if (this.onMoveKey(event, command) || (!command && this.onRankKey(event))) taken(event);
  }

  onMoveKey({ key, shiftKey: extend }, command) {
    const { rows, roles } = this.store;
    let { row, column } = this.focus;
    if (command && key.toLowerCase() === "a") {
      this.anchor = { row: 0, column: 0 };
      this.moveTo(rows.length - 1, roles.length - 1, { extend: true });
      return true;
    }
    if (key === "Escape") {
      if (this.anchor === this.focus) return false;
      this.moveTo(row, column);
      return true;
    }
    const steps = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1], PageUp: [-8, 0], PageDown: [8, 0] };
    if (key in steps && !command) {
      const [down, right] = steps[key];
      // A selection of cells stays among cells; without Shift, the headers are one step further.
      const lowest = { row: extend ? Math.min(this.anchor.row, 0) : column < 0 ? 0 : -1, column: extend ? Math.min(this.anchor.column, 0) : row < 0 ? 0 : -1 };
      row = Math.min(rows.length - 1, Math.max(key === "PageUp" ? 0 : lowest.row, row + down));
      column = Math.min(roles.length - 1, Math.max(lowest.column, column + right));
    } else if (key === "Home") [row, column] = [command ? 0 : row, 0];
    else if (key === "End") [row, column] = [command ? rows.length - 1 : row, roles.length - 1];
    else return false;
    this.moveTo(row, column, { extend });
    return true;
  }

  onRankKey({ key, timeStamp }) {
    if (isDigit(key)) this.typeDigit(key, timeStamp);
    else if (key === "+" || key === "=") this.setRanks(this.picked(), (cell) => stepUp(this.store.rankOf(cell)));
    else if (key === "-" || key === "_" || key === "−") this.setRanks(this.picked(), (cell) => stepDown(this.store.rankOf(cell)));
    else if (key === "Delete" || key === "Backspace") this.setRanks(this.picked(), () => 0);
    else if (key === " " || key === "Enter") this.toggle(this.picked());
    else return false;
    return true;
  }

  // ---- pointer

  onPointerDown(event) {
    const at = placeOf(event.target);
    if (!at || event.button !== 0 || event.ctrlKey || this.store.painting) return;
    if (event.shiftKey) {
      event.preventDefault();
      return this.moveTo(at.row, at.column, { extend: true });
    }
    if (at.row < 0 || at.column < 0) return; // a header: its click fills
    if (event.pointerType !== "touch") return this.startStroke(at, event.pointerId);
    const { clientX: x, clientY: y, pointerId: pointer } = event;
    this.finger = { at, x, y, pointer, timer: setTimeout(() => this.liftFinger("paint"), HOLD_MS) };
  }

  /** What a finger meant is known: it paints, or it was only there to scroll. */
  liftFinger(meaning) {
    const { finger } = this;
    if (!finger) return;
    clearTimeout(finger.timer);
    this.finger = null;
    if (meaning === "paint") this.startStroke(finger.at, finger.pointer);
  }

  /** Sideways is painting (but in a grid that itself scrolls sideways), up and down is scrolling. */
  onSlip(across, along) {
    if (Math.max(across, along) <= SLIP_PX) return;
    this.liftFinger(across > along && !this.table.classList.contains("ll-wide") ? "paint" : "scroll");
  }

  startStroke(at, pointer) {
    const cell = this.store.cellAt(at.row, at.column);
    if (this.locked) {
      this.moveTo(at.row, at.column);
      return void this.refuse();
    }
    this.store.begin();
    this.stroke = { value: cell && this.isAtBrush(cell) ? 0 : this.model.get("rank"), last: at, pointer, capped: 0, cells: [] };
    this.moveTo(at.row, at.column);
    this.table.classList.add("ll-painting");
    this.table.setPointerCapture(pointer);
    this.paintTo(at);
  }

  onPointerMove(event) {
    const { finger } = this;
    if (finger?.pointer === event.pointerId) this.onSlip(Math.abs(event.clientX - finger.x), Math.abs(event.clientY - finger.y));
    if (this.stroke?.pointer !== event.pointerId) return;
    // Captured events name the grid as their target: ask what lies below the pointer.
    const at = placeOf(this.table.getRootNode().elementFromPoint(event.clientX, event.clientY));
    if (at && at.row >= 0 && at.column >= 0 && this.table.contains(this.nodes.get(`${at.row},${at.column}`))) this.paintTo(at);
  }

  /** Paint all cells on the way: a quick hand skips some between two events. */
  paintTo({ row, column }) {
    const { stroke, store } = this;
    const { last } = stroke;
    const steps = Math.max(1, Math.abs(row - last.row), Math.abs(column - last.column));
    for (let i = 0; i <= steps; i += 1) {
      const part = i / steps;
      const cell = store.cellAt(Math.round(last.row + (row - last.row) * part), Math.round(last.column + (column - last.column) * part));
      if (!cell || stroke.cells.includes(cell)) continue;
      stroke.cells.push(cell);
      stroke.capped += store.put(cell, stroke.value);
    }
    stroke.last = { row, column };
    this.setHover(stroke.last);
    store.show();
  }

  onPointerUp(event) {
    if (this.finger?.pointer === event.pointerId) this.liftFinger("paint");
    const { stroke } = this;
    if (stroke?.pointer !== event.pointerId) return;
    this.stroke = null;
    this.table.classList.remove("ll-painting");
    if (event.pointerType === "touch") this.setHover(null);
    if (!this.store.painting) return; // Python set other ranks meanwhile
    this.store.commit();
    if (stroke.capped) this.sayCapped(stroke.capped, stroke.cells);
    else if (!stroke.cells.length) this.say("no matrix here to adapt");
    else this.say(stroke.cells.length === 1 ? this.nameOf(stroke.cells[0]) : `${stroke.cells.length} matrices rank ${stroke.value}`, { shown: false });
  }

  onPointerCancel(event) {
    if (this.finger?.pointer === event.pointerId) this.liftFinger("scroll");
    if (this.stroke?.pointer === event.pointerId) this.drop();
  }

  /** Give the stroke in hand up: the ranks are as they were. */
  drop() {
    this.stroke = null;
    this.table.classList.remove("ll-painting");
    this.store.cancel();
  }

  onClick(event) {
    const at = placeOf(event.target);
    if (!at || event.shiftKey || (at.row >= 0 && at.column >= 0)) return;
    this.moveTo(at.row, at.column);
    this.toggle(this.picked());
  }

  // ---- copying

  /** `coded_ranks` says which ranks `code` is for: Python may not have answered yet. */
  get codeIsStale() {
    return !sameRanks(this.model.get("coded_ranks"), this.store.ranks);
  }

  async copy() {
    this.copying = this.codeIsStale;
    if (this.copying) return this.say("waiting for the kernel…");
    this.say((await copyText(this.model.get("code"))) ? "copied" : "the browser forbids copying; print .code in a cell");
  }

  finishCopy() {
    if (this.copying && !this.codeIsStale) this.copy();
  }
}

/** The row and column of the cell or header that a node belongs to. */
function placeOf(node) {
  const cell = node?.closest?.("[data-row]");
  return cell && { row: Number(cell.dataset.row), column: Number(cell.dataset.column) };
}

function isDigit(key) {
  return /^[0-9]$/.test(key);
}

/** "3" → "layer 3", "enc 3" → "enc 3". */
function layerName(label) {
  return /^\d+$/.test(label) ? `layer ${label}` : label;
}

/** "enc 3" → "enc", "3" → "". */
function stackOf(label) {
  return label.replace(/\s*\d+$/, "");
}

function tint(node, rank) {
  const rgb = rank > 0 ? rankColor(rank) : null;
  node.style.background = rgb ? `rgb(${rgb})` : "";
  node.style.color = rgb ? inkOn(rgb) : "";
  node.classList.toggle("ll-on", Boolean(rgb));
}

function taken(event) {
  event.preventDefault();
  event.stopPropagation();
}

// A function, called once a model: views get different proxies of it, but share this store.
export default () => {
  let store;
  return {
    initialize({ model }) {
      store = new RankStore(model);
      return () => store.close();
    },
    render({ model, el: root, signal }) {
      const view = new RankGridView(store, model, root);
      const remove = () => view.remove();
      signal?.addEventListener("abort", remove, { once: true });
      return remove;
    },
  };
};
