// @ts-check
// Whether the kernel behind a panel is still there. One that was restarted, died or was shut down
// takes the panel's Python with it for good: what the page shows is a picture from then on, and
// says so. JupyterLab tells of its kernels; other hosts do not, and there nothing is said.

const GONE = {
  restarting: "the kernel was restarted",
  autorestarting: "the kernel died and was started anew",
  dead: "the kernel died",
  terminating: "the kernel was shut down",
};
const REMEDY = "this is its last state · run the cell again; your runs are under Runs";
const AWAY = "no connection to the kernel: this is its last state, until the connection is back";
const AWAY_MS = 2_000; // a connection that breaks off is mostly back by then

/** What one panel's model knows of its kernel. */
export class Kernel {
  /** @param {any} manager of the widgets; only Jupyter's own knows of kernels */
  constructor(manager) {
    this.gone = false;
    this.text = ""; // why what is shown is old; "" while it is not
    /** @type {Set<() => void>} */
    this.listeners = new Set();
    this.timer = 0;
    const source = manager?.context?.sessionContext ?? manager?.kernel;
    /** @type {[any, (sender: any, news: any) => void][]} */
    this.slots = [
      [source?.statusChanged, (_, status) => status in GONE && this.end(status)],
      [source?.kernelChanged, (_, { oldValue }) => oldValue && this.end("terminating")],
      [source?.connectionStatusChanged, (_, status) => this.hear(status)],
    ];
    for (const [signal, slot] of this.slots) signal?.connect(slot);
  }

  close() {
    clearTimeout(this.timer);
    for (const [signal, slot] of this.slots) signal?.disconnect(slot);
  }

  end(status) {
    if (this.gone && status !== "autorestarting") return; // which is first told as "restarting"
    this.gone = true;
    this.say(`${GONE[status]}: ${REMEDY}`);
  }

  hear(connection) {
    clearTimeout(this.timer);
    if (this.gone) return;
    if (connection === "connected") this.say("");
    else this.timer = setTimeout(() => this.say(AWAY), AWAY_MS);
  }

  say(text) {
    this.text = text;
    for (const listener of this.listeners) listener();
  }

  /** Have a function called when something is new; returns what ends it. */
  listen(listener) {
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  }

  /**
   * Say it at the top of a place that shows the panel, and take the place out of people's hands
   * when the kernel has gone; returns what ends it.
   * @param {HTMLElement} place
   */
  show(place) {
    const line = document.createElement("div");
    line.className = "ll-panel ll-gone";
    const draw = () => {
      line.textContent = this.text;
      if (this.text) place.prepend(line);
      else line.remove();
      if (!this.gone) return;
      const bench = place.closest(".ll-workbench");
      const choices = bench?.querySelectorAll(".widget-dropdown") ?? [];
      for (const each of [...place.children, ...choices]) {
        if (each !== line) /** @type {HTMLElement} */ (each).inert = true;
      }
    };
    const unlisten = this.listen(draw);
    draw();
    return () => {
      unlisten();
      line.remove();
    };
  }
}
