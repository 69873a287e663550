// @ts-check
// What all views of one rank grid share: the ranks shown, the stroke in hand, undo and redo.
// A stroke changes only the browser; its end saves the model once, so Python hears one message.
/** @import { Model } from "./_shared.js" */

import { listen } from "./_shared.js";
import { GRIDS } from "./shown_ranks.js";

const HISTORY = 200;
const SELECT_MS = 150; // holding an arrow key down must not send thirty messages a second

export function sameRanks(a, b) {
  const keys = Object.keys(a);
  return keys.length === Object.keys(b).length && keys.every((key) => a[key] === b[key]);
}

/** The next of 1, 2, 4, 8, … above r. */
export function stepUp(r) {
  return 2 ** Math.floor(Math.log2(Math.max(r, 0.5)) + 1);
}

/** The next of …, 8, 4, 2, 1, 0 below r. */
export function stepDown(r) {
  return r <= 1 ? 0 : 2 ** (Math.ceil(Math.log2(r)) - 1);
}

/**
 * A matrix that can have a rank; `shape` is [out, in].
 * @typedef {object} Cell
 * @property {string} site
 * @property {number} row
 * @property {string} role
 * @property {[number, number]} shape
 * @property {number} max_rank
 * @property {number} [experts] how many share the cell's tensor, each with factors of its own
 */

export class RankStore {
  /** @param {Model} model */
  constructor(model) {
    this.model = model;
    /** @type {Set<{build(): void, repaint(): void}>} */
    this.views = new Set();
    this.load();
    const reload = () => {
      this.load();
      for (const view of this.views) view.build();
    };
    const bench = model.get("bench");
    GRIDS.set(bench, this);
    const unlisten = listen(model, {
      "change:rows": reload,
      "change:roles": reload,
      "change:cells": reload,
      "change:ranks": () => this.adopt(),
      "change:live": () => this.followLive(),
    });
    this.close = () => {
      unlisten();
      if (GRIDS.get(bench) === this) GRIDS.delete(bench);
    };
  }

  /** Take over another anatomy: what was done to the old one cannot be undone on this one. */
  load() {
    const { model } = this;
    this.rows = model.get("rows");
    this.roles = model.get("roles");
    this.cells = model.get("cells");
    this.grid = this.rows.map(() => this.roles.map(() => null));
    for (const cell of this.cells) this.grid[cell.row][this.roles.indexOf(cell.role)] = cell;
    this.ranks = { ...model.get("ranks") };
    this.past = [];
    this.future = [];
    this.before = null; // the ranks before the stroke in hand
    this.planned = false; // the plan is asked for in the place of live ranks
    this.places = new Map(this.cells.map((cell, i) => [cell.site, i]));
  }

  cellAt(row, column) {
    return this.grid[row]?.[column] ?? null;
  }

  rankOf(cell) {
    return this.ranks[cell.site] ?? 0;
  }

  /** The rank to draw: what training has made of it, while that is on show. */
  shownRank(cell) {
    return this.live ? (this.live.ranks[this.places.get(cell.site)] ?? 0) : this.rankOf(cell);
  }

  /** Live ranks while they are on show, else null. */
  get live() {
    return this.hasLive && !this.planned ? this.model.get("live") : null;
  }

  get hasLive() {
    return Boolean(this.model.get("live").ranks);
  }

  followLive() {
    if (!this.hasLive) this.planned = false;
    else this.cancel();
    for (const view of this.views) view.repaint();
  }

  /** Show the plan in the place of live ranks, or the other way round. */
  turn() {
    this.planned = !this.planned;
    for (const view of this.views) view.repaint();
  }

  get painting() {
    return this.before !== null;
  }

  begin() {
    clearTimeout(this.selecting);
    this.before = { ...this.ranks };
  }

  /** Set a rank within a stroke; true if it had to be capped at min(out, in). */
  put(cell, rank) {
    const kept = Math.min(rank, cell.max_rank);
    if (kept > 0) this.ranks[cell.site] = kept;
    else delete this.ranks[cell.site];
    return kept < rank;
  }

  /** End the stroke; `amend` folds it into the step before (a second digit, typed at once). */
  commit({ amend = false } = {}) {
    const { before } = this;
    this.before = null;
    if (!sameRanks(before, this.ranks)) {
      if (!amend) this.remember(before);
      else if (sameRanks(this.past.at(-1), this.ranks)) this.past.pop();
      this.model.set("ranks", { ...this.ranks });
    }
    this.save();
    this.show();
  }

  cancel() {
    if (!this.painting) return;
    this.ranks = this.before;
    this.before = null;
    this.save();
    this.show();
  }

  /** One whole stroke: `rankFor(cell)` gives each cell's new rank. Returns how many were capped. */
  apply(cells, rankFor, options) {
    this.begin();
    const capped = cells.filter((cell) => this.put(cell, rankFor(cell)));
    this.commit(options);
    return capped.length;
  }

  remember(ranks) {
    this.past.push(ranks);
    if (this.past.length > HISTORY) this.past.shift();
    this.future = [];
  }

  undo() {
    return this.travel(this.past, this.future);
  }

  redo() {
    return this.travel(this.future, this.past);
  }

  travel(from, to) {
    if (!from.length || this.painting) return false;
    to.push(this.ranks);
    this.ranks = from.pop();
    this.model.set("ranks", { ...this.ranks });
    this.save();
    this.show();
    return true;
  }

  /** Ranks set by Python: one more step that can be undone. A stroke in hand gives way. */
  adopt() {
    const ranks = this.model.get("ranks");
    if (sameRanks(ranks, this.ranks) && !this.painting) return;
    this.remember(this.before ?? this.ranks);
    this.before = null;
    this.ranks = { ...ranks };
    this.show();
  }

  /** Tell every view of the grid, and the other panels of this workbench, without Python. */
  show() {
    for (const view of this.views) view.repaint();
    const detail = { bench: this.model.get("bench"), ranks: { ...this.ranks } };
    document.dispatchEvent(new CustomEvent("lora-lab:ranks", { detail }));
  }

  select(site) {
    if (this.model.get("selected") === site) return;
    this.model.set("selected", site);
    if (this.painting) return; // the stroke's end saves it too
    clearTimeout(this.selecting);
    this.selecting = setTimeout(() => this.model.save_changes(), SELECT_MS);
  }

  save() {
    clearTimeout(this.selecting);
    this.model.save_changes();
  }
}
