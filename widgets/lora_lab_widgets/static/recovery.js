// @ts-check
// What a page restores by itself. Two libraries of the page give a widget two seconds, and do not
// look again; where the cores are taken (training, a page that loads) a living widget is lost:
// - jupyterlab-manager 5.0.16 waits so long for an output's model: "model not found".
// - anywidget 0.11 waits so long for a module: later, its model hears nothing of Python any more.

const LOST = "Error displaying widget: model not found";
const VIEW = "application/vnd.jupyter.widget-view+json";
const LOOKS_MS = [500, 1000, 2000, 4000, 8000, 16_000]; // pauses; the page is at rest by then
const CARED_FOR = Symbol.for("lora_lab.recovery"); // pages may hold several copies of this module

/**
 * Restore what the page has lost, now and for a while; called as a panel's model comes to be.
 * @param {any} manager of the widgets; other hosts than Jupyter's may have little of it
 */
export function recover(manager) {
  const models = manager?._models;
  if (!models) return;
  manager[CARED_FOR] ??= { heard: new WeakSet(), looks: 0 };
  const care = manager[CARED_FOR];
  for (const promise of Object.values(models)) {
    if (care.heard.has(promise)) continue;
    care.heard.add(promise);
    Promise.resolve(promise).then(keepHearing).catch(() => {});
  }
  care.looks += 1; // the latest call looks for all
  look(manager, care.looks);
}

/** Have a model whose module came late take messages all the same, and what it has missed. */
async function keepHearing(model) {
  if (!model.get("_anywidget_id") || !model.comm) return;
  try {
    await model._handle_comm_msg({ content: { data: { method: "none" } } });
  } catch {
    const base = Object.getPrototypeOf(Object.getPrototypeOf(model));
    model.comm.on_msg((message) => base._handle_comm_msg.call(model, message));
    model.comm.send({ method: "request_state" }, {});
  }
}

async function look(manager, turn) {
  for (const pause of LOOKS_MS) {
    await new Promise((resolve) => setTimeout(resolve, pause));
    if (manager[CARED_FOR].looks !== turn) return;
    await showLost(manager).catch(() => {});
  }
}

/** Show again what says that its model was not found, where that model has come since. */
async function showLost(manager) {
  const shown = [...document.querySelectorAll(".jupyter-widgets")];
  if (!shown.some((node) => node.textContent === LOST)) return;
  /** @type {Map<string, any[]>} */
  const outputs = new Map();
  const notebook = manager.context?.model;
  for (const output of outputsOf(notebook?.cells)) {
    const id = output.data[VIEW]?.model_id;
    if (id && manager.has_model(id)) outputs.set(id, [...(outputs.get(id) ?? []), output]);
  }
  const dirty = notebook?.dirty;
  for (const [id, places] of outputs) {
    const model = await manager.get_model(id);
    if (Object.keys(model.views ?? {}).length < places.length) places.forEach(renew);
  }
  if (dirty === false) notebook.dirty = false; // nothing was changed that is to be saved
}

function* outputsOf(cells) {
  for (let i = 0; i < (cells?.length ?? 0); i++) {
    const { outputs } = cells.get(i); // only code has them
    for (let j = 0; j < (outputs?.length ?? 0); j++) yield outputs.get(j);
  }
}

/** Draw an output anew: another kind between, as a kind that stays keeps its old place. */
function renew(output) {
  const data = structuredClone(output.data); // an output that goes takes the model's id with it
  output.setData({ data: { "text/plain": "" } });
  output.setData({ data });
}
