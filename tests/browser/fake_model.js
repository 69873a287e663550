// @ts-check
// A model as the anywidget front-end module sees it, and enough of a host around it.

const freeze = (value) => {
  if (value && typeof value === "object") Object.values(Object.freeze(value)).forEach(freeze);
  return value;
};

/** A signal of JupyterLab's. */
class FakeSignal {
  constructor() {
    this.slots = new Set();
  }

  connect(slot) {
    this.slots.add(slot);
  }

  disconnect(slot) {
    this.slots.delete(slot);
  }

  emit(news) {
    for (const slot of this.slots) slot(null, news);
  }
}

/** The traits of one widget, and what a page does with them. */
class FakeModel {
  constructor() {
    this.state = {};
    this.handlers = []; // {event, callback, context}
    this.unsaved = {};
    this.saves = [];
    this.sent = [];
    this.others = {}; // {id: what is called when that model changes}
    this.models = {}; // {id: its state, or a promise of it}: what other models the page has
    this.session = { // of a notebook that JupyterLab shows
      statusChanged: new FakeSignal(),
      kernelChanged: new FakeSignal(),
      connectionStatusChanged: new FakeSignal(),
    };
  }

  emit(event, ...values) {
    for (const each of this.handlers.filter((h) => h.event === event)) each.callback(...values);
  }

  put(values) {
    const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);
    const changed = Object.keys(values).filter((name) => !same(this.state[name], values[name]));
    for (const name of changed) this.state[name] = copy(values[name]);
    for (const name of changed) this.emit(`change:${name}`, null, this.state[name]);
    if (changed.length) this.emit("change");
    return changed;
  }

  /** Like anywidget's: every view, and initialize, gets a proxy object of its own. */
  proxy(context) {
    const model = this;
    return {
      get: (name) => model.state[name],
      set(name, value) {
        for (const key of model.put({ [name]: value })) model.unsaved[key] = model.state[key];
      },
      save_changes() {
        if (Object.keys(model.unsaved).length) model.saves.push(structuredClone(model.unsaved));
        model.unsaved = {};
      },
      send: (content) => model.sent.push(structuredClone(content)),
      widget_manager: {
        context: { sessionContext: model.session },
        async get_model(id) {
          model.models[id] ??= {};
          model.others[id] ??= new Set();
          const other = await model.models[id];
          const handlers = model.others[id];
          return {
            get: (name) => other[name],
            send: (content) => model.sent.push({ to: id, ...content }),
            on: (_event, callback) => handlers.add(callback),
            off: (_event, callback) => handlers.delete(callback),
          };
        },
      },
      on: (event, callback) => model.handlers.push({ event, callback, context }),
      off(event, callback) {
        const isOff = (h) => h.context === context && (!event || h.event === event)
          && (!callback || h.callback === callback);
        model.handlers = model.handlers.filter((h) => !isOff(h));
      },
    };
  }
}

function copy(value) {
  return value === undefined ? value : freeze(structuredClone(value));
}

/** Counts what a panel leaves behind on what outlives it. */
class Leftovers {
  constructor() {
    /** @type {Map<any, {type: string, callback: any}[]>} */
    this.held = new Map();
    this.held.set(document, []).set(window, []);
    this.intervals = new Set();
    this.addEventListener = EventTarget.prototype.addEventListener;
    this.watchListeners();
    this.watchIntervals();
  }

  watchListeners() {
    const { held } = this;
    const { addEventListener, removeEventListener } = EventTarget.prototype;
    EventTarget.prototype.addEventListener = function (type, callback, /** @type {any} */ options) {
      const list = held.get(this ?? window);
      if (list && callback) {
        const entry = { type, callback };
        list.push(entry);
        const forget = () => held.set(this, held.get(this).filter((e) => e !== entry));
        options?.signal?.addEventListener("abort", forget);
      }
      return addEventListener.call(this ?? window, type, callback, options);
    };
    EventTarget.prototype.removeEventListener = function (type, callback, options) {
      const list = held.get(this ?? window);
      if (list) held.set(this, list.filter((e) => e.type !== type || e.callback !== callback));
      return removeEventListener.call(this ?? window, type, callback, options);
    };
  }

  watchIntervals() {
    const { intervals } = this;
    const { setInterval: start, clearInterval: stop } = window;
    window.setInterval = (...args) => {
      const id = start(...args);
      intervals.add(id);
      return id;
    };
    window.clearInterval = (id) => {
      intervals.delete(id);
      stop(id);
    };
  }
}

/** Make the page look like a host's: "jupyter", "colab", "vscode" or "none". */
function setTheme(name, host) {
  const { body, documentElement: root } = document;
  const dark = name === "dark";
  delete body.dataset.jpThemeLight;
  root.removeAttribute("theme");
  body.classList.remove("vscode-light", "vscode-dark");
  body.style.removeProperty("--jp-layout-color0");
  if (host === "jupyter") {
    body.dataset.jpThemeLight = String(!dark);
    body.style.setProperty("--jp-layout-color0", dark ? "#111111" : "#ffffff");
  }
  if (host === "colab") root.setAttribute("theme", name);
  if (host === "vscode") body.classList.add(`vscode-${name}`);
  root.style.colorScheme = name;
  body.style.background = dark ? "#111318" : "#fff";
}

/** What a test calls, as `lab`. */
class Lab {
  constructor() {
    this.model = new FakeModel();
    this.leftovers = new Leftovers();
    this.events = [];
    this.views = [];
  }

  get state() {
    return this.model.state;
  }

  get saves() {
    return this.model.saves;
  }

  get sent() {
    return this.model.sent;
  }

  get models() {
    return this.model.models;
  }

  /** Put values into another model of the page. */
  give(id, values) {
    const { models, others } = this.model;
    models[id] = Object.assign(models[id] ?? {}, values);
    for (const call of others[id] ?? []) call();
  }

  async start(esm, initial) {
    for (const [name, value] of Object.entries(initial)) this.state[name] = copy(value);
    const url = URL.createObjectURL(new Blob([esm], { type: "text/javascript" }));
    const { default: exported } = await import(url);
    URL.revokeObjectURL(url);
    this.widget = typeof exported === "function" ? await exported() : exported;
    await this.widget.initialize?.({ model: this.model.proxy("initialize") });
  }

  async addView() {
    const index = this.views.length;
    const element = document.createElement("div");
    element.dataset.view = String(index);
    document.body.append(element);
    const controller = new AbortController();
    const view = { element, controller, cleanup: null };
    this.views.push(view);
    const model = this.model.proxy(`view ${index}`);
    view.cleanup = await this.widget.render({ model, el: element, signal: controller.signal });
    return index;
  }

  async removeView(index, by) {
    const view = this.views[index];
    if (by !== "signal") await view.cleanup?.();
    if (by !== "cleanup") view.controller.abort();
    view.element.remove();
  }

  receive(values) {
    this.model.put(values);
  }

  message(content) {
    this.model.emit("msg:custom", structuredClone(content), []);
  }

  /** Tell what befell the kernel: a "statusChanged" and so on, with its news. */
  kernel(signal, news) {
    this.model.session[signal].emit(news);
  }

  clearLog() {
    for (const log of [this.saves, this.sent, this.events]) log.length = 0;
  }

  watch(event) {
    const record = (/** @type {any} */ { detail }) => this.events.push(structuredClone(detail));
    this.leftovers.addEventListener.call(document, event, record);
  }

  openEnds() {
    const { held, intervals } = this.leftovers;
    return {
      model: this.model.handlers.length,
      document: held.get(document).length,
      window: held.get(window).length,
      intervals: intervals.size,
    };
  }

  theme(name, host) {
    setTheme(name, host);
  }
}

const lab = new Lab();
Object.assign(globalThis, { lab });
