// @ts-check
// The heartbeat. One clock a panel, however many views it has: it asks Python while at least one
// view can be seen, and asks again only when the last question is answered.
/** @import { Model } from "./_shared.js" */

import { themeOf } from "./_shared.js";

const ACTIVE_MS = 600; // between questions while a run goes on
const SLOW_MS = 2000; // the longest while it goes on: slow steps, one question for one and a half
// For a while after a command: its effect comes a moment later. See message_throttle.py
const EAGER_MS = 400;
const CALM_MS = 1000; // while nothing changes by itself
const ANSWER_MS = 10_000; // after so long without an answer, ask again
const BUSY_MS = 2_000; // after so long, say that the kernel is busy
const EAGER_FOR_MS = 3_000;
const ACTIVE_STATES = ["running", "pausing", "stopping"];

/**
 * @typedef {object} View
 * @property {Model} model
 * @property {boolean} visible
 * @property {() => boolean} gone whether there is no kernel any more to be asked
 * @property {() => number} width
 * @property {(flag: boolean) => void} busy
 */

class Clock {
  constructor() {
    /** @type {Set<View>} */
    this.views = new Set();
    // Two pages may show one panel; each waits for its own answer.
    this.page = Math.random().toString(36).slice(2, 8);
    this.count = 0;
    this.waiting = null; // the question that has no answer yet
    this.askedAt = -Infinity;
    this.notBefore = -Infinity;
    this.eagerUntil = 0;
    this.active = false;
    this.pace = ACTIVE_MS;
    this.timer = 0;
    this.busyTimer = 0;
    this.wake = () => this.plan();
  }

  add(view) {
    if (!this.views.size) document.addEventListener("visibilitychange", this.wake);
    this.views.add(view);
  }

  remove(view) {
    this.views.delete(view);
    if (this.views.size) return;
    document.removeEventListener("visibilitychange", this.wake);
    clearTimeout(this.timer);
    clearTimeout(this.busyTimer);
  }

  /** Send a command of the user; its answer is an ordinary snapshot. */
  send(model, message) {
    this.notBefore = performance.now() + ACTIVE_MS; // the answer is a message too
    model.send({ ...message, seq: this.next() });
    this.hurry();
  }

  /** Ask soon, and often for a while: something is to be followed. */
  hurry() {
    this.eagerUntil = performance.now() + EAGER_FOR_MS;
    this.plan();
  }

  /** A snapshot arrived: perhaps the answer, perhaps another page's. */
  heard({ seq, state, rate }) {
    this.active = ACTIVE_STATES.includes(state);
    // Slow steps need few looks, and there the browser often sits on the cores that train.
    this.pace = Math.min(SLOW_MS, Math.max(ACTIVE_MS, rate ? 1500 / rate : 0));
    if (seq === this.waiting) {
      this.waiting = null;
      clearTimeout(this.busyTimer);
      for (const view of this.views) view.busy(false);
    }
    this.plan();
  }

  /** Set the timer for the next question; nothing while one is open or nobody looks. */
  plan() {
    if (this.waiting !== null) return;
    clearTimeout(this.timer);
    if (!this.looking()) return;
    const now = performance.now();
    const eager = now < this.eagerUntil;
    const pause = eager ? EAGER_MS : this.active ? this.pace : CALM_MS;
    const due = Math.max(this.notBefore, this.askedAt + pause);
    this.timer = setTimeout(() => this.ask(), Math.max(0, due - now));
  }

  ask() {
    const view = this.looking();
    if (!view) return;
    this.waiting = this.next();
    this.askedAt = performance.now();
    this.timer = setTimeout(() => {
      this.waiting = null;
      this.plan();
    }, ANSWER_MS);
    clearTimeout(this.busyTimer);
    this.busyTimer = setTimeout(() => {
      for (const each of this.views) each.busy(!each.gone());
    }, BUSY_MS);
    view.model.send({ type: "tick", seq: this.waiting, theme: themeOf(), width: view.width() });
  }

  looking() {
    if (document.visibilityState === "hidden") return undefined;
    return [...this.views].find((view) => view.visible && !view.gone());
  }

  next() {
    this.count += 1;
    return `${this.page}-${this.count}`;
  }
}

// Views get different proxies of one model, and some hosts load a module once for all panels: the
// panel's own name is what its views have in common.
const CLOCKS = new Map();

/**
 * Join the clock of the panel that this view shows; returns [clock, leave].
 * @param {View} view
 * @returns {[Clock, () => void]}
 */
export function joinClock(view) {
  const name = view.model.get("clock");
  if (!CLOCKS.has(name)) CLOCKS.set(name, new Clock());
  const clock = CLOCKS.get(name);
  clock.add(view);
  const leave = () => {
    clock.remove(view);
    if (!clock.views.size) CLOCKS.delete(name);
  };
  return [clock, leave];
}

/** Call `changed(visible)` as `node`, or the workbench around it, comes into sight or leaves it. */
export function watchSight(node, changed) {
  const observer = new IntersectionObserver((entries) => {
    changed(entries.at(-1).isIntersecting);
  });
  let frame = 0;
  const start = () => {
    // A host may call `render` before it puts the node on the page.
    if (node.isConnected) observer.observe(workbenchOf(node));
    else frame = requestAnimationFrame(start);
  };
  frame = requestAnimationFrame(start);
  return () => {
    cancelAnimationFrame(frame);
    observer.disconnect();
  };
}

/** What the views share the width of: the workbench, or the panel where it stands alone. */
export function workbenchOf(node) {
  return node.closest(".ll-workbench") ?? node;
}

/** The width that a node has for its children, in whole CSS pixels. */
export function roomIn(node) {
  const { paddingLeft, paddingRight } = getComputedStyle(node);
  return Math.floor(node.clientWidth - parseFloat(paddingLeft) - parseFloat(paddingRight));
}
