// @ts-check
// The rank grid: rows are layers, columns are roles, a cell shows its rank as number and color.
// Here: the lines below the table, the lock, and how ranks change. rank_table.js draws the cells,
// rank_tools.js has brush and buttons, rank_input.js pointer and keys; rank_store.js is what the
// views of one grid share.
/** @import { Model } from "./_shared.js" */
/** @import { Cell } from "./rank_store.js" */
/** @import { Place } from "./rank_table.js" */

import { button, el, formatBytes, formatCount, heading, listen } from "./_shared.js";
import { Kernel } from "./kernel.js";
import { RankInput } from "./rank_input.js";
import { RankStore } from "./rank_store.js";
import { RankTable, layerName, stackOf } from "./rank_table.js";
import { RankTools, lastPart } from "./rank_tools.js";
import { term, termTitle } from "./term.js";

const NOTE_MS = 5000;
const LOCKED = "locked until the run ends";
const MOVED = "what AdaLoRA has left of every matrix's rank";
const HELP = "click or drag to paint, with Shift to select\nkeys: arrows, 1–9 for a rank, + and −";

export class RankGridView {
  /**
   * @param {RankStore} store
   * @param {Model} model
   * @param {HTMLElement} root
   */
  constructor(store, model, root) {
    this.store = store;
    this.model = model;
    this.root = root;
    this.noteTimer = 0; // 0: the note is at rest
    this.table = new RankTable(store, model, {
      moved: () => this.input.endNumber(),
      looked: () => this.showLines(),
    });
    this.input = new RankInput(this);
    this.tools = new RankTools(this);
    this.buildFrame();
    this.unlisten = listen(model, {
      "change:locked": () => this.onLock(),
      "change:inert": () => this.onInert(),
      "change:rank": () => this.tools.buildBrushes(),
      "change:selected": () => this.followSelected(),
      "change:code": () => this.tools.draw(),
      "change:coded_ranks": () => this.tools.finishCopy(),
      "change:bytes_per_parameter": () => this.showLines(),
      "change:head": () => this.showLines(),
    });
    store.views.add(this);
    this.build();
  }

  remove() {
    this.unlisten();
    this.input.close();
    this.store.views.delete(this);
    clearTimeout(this.noteTimer);
  }

  // ---- building

  buildFrame() {
    const { root } = this;
    root.classList.add("ll-panel", "ll-ranks");
    root.dataset.lmSuppressShortcuts = "true"; // else JupyterLab's command mode takes our keys
    root.addEventListener("keydown", (event) => this.input.onAnyKey(event));
    this.description = el("div", { class: "ll-rank-line" });
    this.totals = el("span", { class: "ll-rank-totals" });
    this.note = el("span", { class: "ll-rank-note" });
    this.turn = button("", () => this.store.turn(), { class: "ll-rank-turn", hidden: true });
    this.live = el("div", { class: "ll-sr", "aria-live": "polite" });
    root.replaceChildren(
      heading("Ranks", term("roles", () => this.roleFacts()),
        this.tools.brushes, term(["rank", "rank-cap"])),
      this.tools.bar,
      this.description,
      this.table.pane,
      el("div", { class: "ll-rank-line ll-dim" }, this.totals, this.note, this.turn),
      this.live,
    );
  }

  /** What each role is, and the shapes that it has in this model. */
  roleFacts() {
    const { cells, roles } = this.store;
    return roles.map((role) => {
      const ofRole = cells.filter((cell) => cell.role === role);
      const shapes = [...new Set(ofRole.map(({ shape }) => `${shape[0]} × ${shape[1]}`))];
      const name = termTitle(lastPart(role)).split(": ").at(-1);
      return [role, [name, shapes.join(" or ")].filter(Boolean).join(", ")];
    });
  }

  /** Build what depends on the model's rows and roles. */
  build() {
    const { rows, roles } = this.store;
    this.table.build();
    const widest = Math.max(2, ...rows.map((label) => label.length));
    this.root.style.setProperty("--ll-columns", String(roles.length));
    this.root.style.setProperty("--ll-rows", String(rows.length));
    this.root.style.setProperty("--ll-rank-label", `${widest + 1.5}ch`);
    this.tools.buildBrushes();
    this.followSelected();
    this.onLock();
    this.onInert();
    this.repaint();
    this.table.placeFocus();
  }

  // ---- showing

  repaint() {
    this.table.repaint();
    this.showLock();
    this.showLines();
    this.showTurn();
    this.tools.draw();
  }

  showLines() {
    const { store } = this;
    const used = store.cells.filter((cell) => store.shownRank(cell));
    const count = `${formatCount(used.length)} of ${formatCount(store.cells.length)} matrices`;
    // As the savings count: what the task has trained besides is in it. Bytes are said there.
    const head = used.length ? this.model.get("head") : 0;
    const parameters = formatCount(this.parametersOf(used) + head);
    const total = `${count}${head ? " and the head" : ""}, ${parameters} parameters`;
    const inert = this.model.get("inert");
    this.totals.textContent = inert ? "" : store.live?.text ?? total;
    this.totals.title = this.totals.textContent; // in a narrow column its end is cut
    this.root.classList.toggle("ll-has-head", this.model.get("head") > 0);
    this.totals.classList.toggle("ll-rank-live", Boolean(store.live));
    this.description.textContent = inert || this.describeFocus();
  }

  /** A few words on what the pointer is at, else on the selection, else on the focus. */
  describeFocus() {
    const { table } = this;
    if (table.hover) return this.describe(table.hover);
    const picked = table.anchor === table.focus ? [] : table.picked();
    if (picked.length > 1) return `${picked.length} matrices selected: ${this.worth(picked)}`;
    const place = table.focused ? table.focus : table.selectedAt();
    return place ? this.describe(place) : this.store.live ? MOVED : HELP;
  }

  /** @param {Place} place */
  describe({ row, column }) {
    const { store } = this;
    const [label, role] = [layerName(store.rows[row] ?? ""), store.roles[column]];
    if (row < 0 || column < 0) {
      const cells = this.table.cellsIn({ row, column }, { row, column });
      return `${row < 0 ? role : label} · ${cells.length} matrices · ${this.worth(cells)}`;
    }
    const cell = store.cellAt(row, column);
    if (!cell) return `${label} · ${role} · no such matrix`;
    const rank = store.shownRank(cell);
    const { max_rank: most, shape, experts } = cell;
    const size = `${experts ? `${experts} experts of ` : ""}${shape[0]} × ${shape[1]}`;
    const worth = rank ? `r ${rank} → ${this.price([cell])}` : `frozen, rank up to ${most}`;
    return `${label} · ${role} · ${size} · ${worth}`;
  }

  /** @param {Cell[]} cells */
  worth(cells) {
    return cells.some((cell) => this.store.shownRank(cell)) ? this.price(cells) : "frozen";
  }

  /** @param {Cell[]} cells */
  price(cells) {
    const parameters = this.parametersOf(cells);
    const bytes = parameters * this.model.get("bytes_per_parameter");
    return `${formatCount(parameters)} parameters, ${formatBytes(bytes)}`;
  }

  /** @param {Cell[]} cells */
  parametersOf(cells) {
    return cells.reduce((sum, cell) =>
      sum + this.store.shownRank(cell) * (cell.shape[0] + cell.shape[1]) * (cell.experts ?? 1), 0);
  }

  showTurn() {
    const { store } = this;
    this.turn.hidden = !store.hasLive || Boolean(this.model.get("inert"));
    this.turn.textContent = store.planned ? "show these ranks" : "show the plan";
    this.turn.title = store.planned
      ? "the ranks that AdaLoRA has made of the plan"
      : "the ranks as they were painted";
  }

  /** Show a note for a while, and have it read out. */
  say(text) {
    this.announce(text);
    clearTimeout(this.noteTimer);
    this.note.textContent = text;
    this.noteTimer = setTimeout(() => this.rest(), NOTE_MS);
  }

  /** Have a text read out by a screen reader. */
  announce(text) {
    this.live.textContent = text;
  }

  followSelected() {
    this.table.followSelected(Boolean(this.input.stroke));
  }

  // ---- locks

  /** Nothing can be painted: a run trains with these ranks, or others than the plan are on show. */
  get locked() {
    return this.model.get("locked") || Boolean(this.store.live);
  }

  /** Show what the note says while nothing happens. */
  rest() {
    clearTimeout(this.noteTimer);
    this.noteTimer = 0;
    const explained = this.store.live || this.model.get("inert");
    this.note.textContent = this.model.get("locked") && !explained ? LOCKED : "";
  }

  onLock() {
    if (this.locked) this.input.drop();
    this.showLock();
    this.rest();
    this.tools.draw();
  }

  showLock() {
    if (!this.noteTimer) this.rest();
    this.root.classList.toggle("ll-locked", this.locked);
    this.table.node.setAttribute("aria-readonly", String(this.locked));
  }

  /** Whether ranks cannot be changed now; the note says why. */
  refuse() {
    if (this.model.get("locked")) this.say(`${LOCKED}: stop it to change ranks`);
    else if (this.store.live) this.say("show the plan to change it");
    return this.locked;
  }

  /** The method has no ranks: pale, and neither pointer nor keyboard reach it. */
  onInert() {
    const inert = Boolean(this.model.get("inert"));
    if (inert) this.input.drop();
    this.table.pane.inert = inert;
    this.tools.setInert(inert);
    this.rest();
    this.showLines();
    this.showTurn();
    this.tools.draw();
  }

  // ---- changing ranks

  /** The rank to paint. */
  get brush() {
    return this.model.get("rank");
  }

  setBrush(rank) {
    this.model.set("rank", rank);
    this.model.save_changes();
  }

  /** @param {Cell} cell */
  isAtBrush(cell) {
    return this.store.rankOf(cell) === Math.min(this.brush, cell.max_rank);
  }

  /**
   * @param {Cell[]} cells
   * @param {(cell: Cell) => number} rankFor
   * @param {{amend?: boolean}} [options] of the store's `commit`
   */
  setRanks(cells, rankFor, options) {
    if (this.refuse()) return;
    if (!cells.length) {
      this.say("no matrix here to adapt");
      return;
    }
    const capped = this.store.apply(cells, rankFor, options);
    if (capped) this.sayCapped(capped, cells);
    else if (cells.length === 1) this.announce(this.table.nameOf(cells[0]));
    else this.announce(`${cells.length} matrices changed`);
  }

  sayCapped(capped, cells) {
    const most = [...new Set(cells.map((cell) => cell.max_rank))];
    if (most.length === 1) this.say(`capped at ${most[0]} = min(out, in)`);
    else this.say(`${capped} capped at min(out, in)`);
  }

  /** 0 ↔ the brush's rank; several cells go together: to the brush unless all are there. */
  toggle(cells) {
    const rank = cells.every((cell) => this.isAtBrush(cell)) ? 0 : this.brush;
    this.setRanks(cells, () => rank);
  }

  preset(text, plan) {
    if (this.refuse()) return;
    const { cells } = this.store;
    const capped = this.store.apply(cells, plan);
    if (capped) this.sayCapped(capped, cells.filter((cell) => plan(cell) > cell.max_rank));
    else this.announce(text);
  }

  paintLast(count) {
    if (!Number.isInteger(count) || count < 1) {
      this.say("how many layers? a whole number, 1 or more");
      return;
    }
    const { rows } = this.store;
    const last = new Set(); // of an encoder and a decoder, the last layers of each
    const layers = [...rows.keys()].filter((row) => /\d$/.test(rows[row])); // not "outside"
    for (const stack of new Set(layers.map((row) => stackOf(rows[row])))) {
      const ofStack = layers.filter((row) => stackOf(rows[row]) === stack);
      for (const row of ofStack.slice(-count)) last.add(row);
    }
    this.preset(`last ${count} layers`, (cell) => (last.has(cell.row) ? this.brush : 0));
  }

  /** @param {"undo" | "redo"} way */
  travel(way) {
    if (this.refuse()) return;
    this.input.endNumber();
    this.announce(this.store[way]() ? `${way}: done` : `nothing to ${way}`);
  }
}

// A function, called once a model: views get different proxies of it, but share this store.
export default () => {
  let store;
  let kernel;
  return {
    initialize({ model }) {
      store = new RankStore(model);
      kernel = new Kernel(model.widget_manager);
      return () => {
        store.close();
        kernel.close();
      };
    },
    render({ model, el: root, signal }) {
      const view = new RankGridView(store, model, root);
      const unshow = kernel.show(root);
      const remove = () => {
        unshow();
        view.remove();
      };
      signal?.addEventListener("abort", remove, { once: true });
      return remove;
    },
  };
};
