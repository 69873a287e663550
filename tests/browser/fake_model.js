// A model as the anywidget front-end module sees it, and enough of a host around it.
const lab = (() => {
  const freeze = (value) => {
    if (value && typeof value === "object") Object.values(Object.freeze(value)).forEach(freeze);
    return value;
  };
  const copy = (value) => (value === undefined ? value : freeze(structuredClone(value)));
  const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);

  const state = {};
  let handlers = []; // {event, callback, context}
  let unsaved = {};
  const saves = [];
  const sent = [];
  const events = [];
  const views = [];
  const models = {}; // {id: its state, or a promise of it}: what other models the page has
  let widget;

  const emit = (event, ...values) =>
    [...handlers].filter((h) => h.event === event).forEach((h) => h.callback(...values));
  const put = (values) => {
    const changed = Object.keys(values).filter((name) => !same(state[name], values[name]));
    for (const name of changed) state[name] = copy(values[name]);
    for (const name of changed) emit(`change:${name}`, null, state[name]);
    if (changed.length) emit("change");
    return changed;
  };

  // Like anywidget's: every view, and initialize, gets a proxy object of its own.
  const proxy = (context) => ({
    get: (name) => state[name],
    set(name, value) {
      for (const key of put({ [name]: value })) unsaved[key] = state[key];
    },
    save_changes() {
      if (Object.keys(unsaved).length) saves.push(structuredClone(unsaved));
      unsaved = {};
    },
    send: (content) => sent.push(structuredClone(content)),
    widget_manager: {
      async get_model(id) {
        const other = await models[id];
        return { get: (name) => other[name] };
      },
    },
    on: (event, callback) => handlers.push({ event, callback, context }),
    off(event, callback) {
      handlers = handlers.filter(
        (h) => h.context !== context || (event && h.event !== event) || (callback && h.callback !== callback),
      );
    },
  });

  // Count what a panel leaves behind on what outlives it.
  const held = new Map([[document, []], [window, []]]);
  const { addEventListener, removeEventListener } = EventTarget.prototype;
  EventTarget.prototype.addEventListener = function (type, callback, options) {
    const list = held.get(this ?? window);
    if (list && callback) {
      const entry = { type, callback };
      list.push(entry);
      options?.signal?.addEventListener("abort", () => held.set(this, held.get(this).filter((e) => e !== entry)));
    }
    return addEventListener.call(this ?? window, type, callback, options);
  };
  EventTarget.prototype.removeEventListener = function (type, callback, options) {
    const list = held.get(this ?? window);
    if (list) held.set(this, list.filter((e) => e.type !== type || e.callback !== callback));
    return removeEventListener.call(this ?? window, type, callback, options);
  };
  const intervals = new Set();
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

  return {
    state, saves, sent, events, models,
    async start(esm, initial) {
      for (const [name, value] of Object.entries(initial)) state[name] = copy(value);
      const url = URL.createObjectURL(new Blob([esm], { type: "text/javascript" }));
      const { default: exported } = await import(url);
      URL.revokeObjectURL(url);
      widget = typeof exported === "function" ? await exported() : exported;
      await widget.initialize?.({ model: proxy("initialize") });
    },
    async addView() {
      const index = views.length;
      const element = document.createElement("div");
      element.dataset.view = index;
      document.body.append(element);
      const controller = new AbortController();
      const view = { element, controller, context: `view ${index}` };
      views.push(view);
      view.cleanup = await widget.render({ model: proxy(view.context), el: element, signal: controller.signal });
      return index;
    },
    async removeView(index, by) {
      const view = views[index];
      if (by !== "signal") await view.cleanup?.();
      if (by !== "cleanup") view.controller.abort();
      view.element.remove();
    },
    receive: (values) => void put(values),
    message: (content) => emit("msg:custom", structuredClone(content), []),
    clearLog() {
      saves.length = sent.length = events.length = 0;
    },
    watch: (event) => addEventListener.call(document, event, (e) => events.push(structuredClone(e.detail))),
    openEnds: () => ({
      model: handlers.length,
      document: held.get(document).length,
      window: held.get(window).length,
      intervals: intervals.size,
    }),
    theme(name, host) {
      const { body, documentElement: root } = document;
      delete body.dataset.jpThemeLight;
      root.removeAttribute("theme");
      body.classList.remove("vscode-light", "vscode-dark");
      if (host === "jupyter") body.dataset.jpThemeLight = String(name === "light");
      if (host === "colab") root.setAttribute("theme", name);
      if (host === "vscode") body.classList.add(`vscode-${name}`);
      const dark = name === "dark";
      root.style.colorScheme = name;
      body.style.background = dark ? "#111318" : "#fff";
      if (host === "jupyter") body.style.setProperty("--jp-layout-color0", dark ? "#111111" : "#ffffff");
      else body.style.removeProperty("--jp-layout-color0");
    },
  };
})();
