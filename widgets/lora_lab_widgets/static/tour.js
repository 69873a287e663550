// @ts-check
// A short tour of the workbench: five stops, each beside what it is about. It is offered in the
// header until somebody has seen it or does not want it, and is never in the way.

import { button, el, focusIn, space } from "./_shared.js";
import { placeBeside, popover } from "./popover.js";

const OVER = "lora-lab-tour"; // in the browser's storage: it is not offered again
/** @type {[place: string, title: string, text: string][]} */
const STOPS = [
  [".ll-header", "Pick a model and data",
    "“Change…” lists what is on this machine, takes a file or a name from the hub, and says what " +
    "it needs before it loads."],
  [".ll-ranks", "Paint ranks",
    "A row is a layer, a column a kind of matrix. Click or drag to give matrices the brush's " +
    "rank; what is not painted stays frozen."],
  [".ll-savings", "See what it costs",
    "Parameters, checkpoint and memory move with the brush, beside full fine-tuning. A “?” " +
    "explains every word that may be new."],
  [".ll-run-primary", "Start",
    "It trains in the background: the notebook stays yours, and Pause lets you use the model " +
    "between two steps."],
  [".ll-delta-head", "Watch ΔW",
    "What it learns, matrix by matrix, while it trains. Then try the model, and keep the adapter."],
];

/** Whether the tour is over for good; where nothing may be stored, it is offered again. */
function isOver() {
  try {
    return localStorage.getItem(OVER) !== null;
  } catch {
    return false;
  }
}

function end() {
  try {
    localStorage.setItem(OVER, "over");
  } catch {
    // It is over on this page all the same.
  }
}

export class Tour {
  /** @param {HTMLElement} root a panel of the workbench, which keeps the tour */
  constructor(root) {
    this.root = root;
    this.at = -1; // the stop on show
    this.over = isOver();
    this.offer = button("New here? A tour", () => this.go(0), {
      class: "ll-button ll-tour-offer", title: "five stops; the page can be used meanwhile",
      "aria-haspopup": "dialog",
    });
    this.refuse = button("✕", () => this.finish(), {
      class: "ll-button ll-tour-refuse", "aria-label": "no tour, now or later",
      title: "no tour, now or later",
    });
    this.title = el("b");
    this.words = el("p");
    this.count = el("span", { class: "ll-dim ll-label" });
    this.back = button("Back", () => this.go(this.at - 1));
    this.next = button("", () => this.go(this.at + 1), { class: "ll-button ll-primary" });
    const leave = button("Not again", () => this.finish());
    this.text = popover({
      class: "ll-tour", "data-lm-suppress-shortcuts": "true",
      on: { keydown: (event) => this.onKey(event) },
    }, this.title, this.words,
      el("div", { class: "ll-bar" }, this.count, space(), leave, this.back, this.next));
    this.node = el("span", { class: "ll-tour-place" }, this.offer, this.refuse, this.text);
    this.follow = () => {
      const stop = this.stops[this.at];
      if (stop?.node.isConnected) placeBeside(this.text, stop.node);
      else this.close();
    };
    this.stops = [];
    this.draw();
  }

  /** Find the stops; it is offered where there are some to be seen. */
  draw() {
    const bench = this.root.closest(".ll-workbench");
    this.stops = STOPS.flatMap(([place, title, text]) => {
      const node = bench?.querySelector(place);
      return node ? [{ node, title, text }] : [];
    });
    this.node.hidden = this.over || this.stops.length < STOPS.length;
  }

  go(index) {
    this.draw();
    this.leaveStop();
    if (index >= this.stops.length) {
      this.finish();
      return;
    }
    const { node, title, text } = this.stops[index];
    if (this.at < 0) this.listen("addEventListener");
    this.at = index;
    this.title.textContent = title;
    this.words.textContent = text;
    this.count.textContent = `${index + 1} of ${this.stops.length}`;
    this.text.setAttribute("aria-label", `tour: ${title}`);
    this.back.disabled = index === 0;
    this.next.textContent = index === this.stops.length - 1 ? "Done" : "Next";
    node.classList.add("ll-tour-here");
    node.scrollIntoView({ block: "nearest" });
    this.text.showPopover();
    this.follow();
    this.text.focus({ preventScroll: true });
  }

  leaveStop() {
    this.stops[this.at]?.node.classList.remove("ll-tour-here");
    if (this.text.isConnected) this.text.hidePopover();
  }

  close() {
    this.leaveStop();
    if (this.at >= 0) this.listen("removeEventListener");
    this.at = -1;
  }

  /** Close it for good; the focus does not go with it. */
  finish() {
    const hadFocus = this.node.contains(focusIn(this.node));
    this.close();
    this.over = true;
    end();
    this.draw();
    if (hadFocus) this.root.querySelector("button")?.focus({ preventScroll: true });
  }

  onKey(event) {
    const { key } = event;
    if (key === "ArrowRight") this.go(this.at + 1);
    else if (key === "ArrowLeft" && this.at > 0) this.go(this.at - 1);
    else if (key === "Escape") {
      this.close();
      this.offer.focus({ preventScroll: true });
    } else return;
    event.preventDefault();
    event.stopPropagation();
  }

  /** @param {"addEventListener" | "removeEventListener"} way */
  listen(way) {
    document[way]("scroll", this.follow, true);
    window[way]("resize", this.follow);
  }
}
