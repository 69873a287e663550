// The runs on disk. Draws `form`, `compared` and `details`; what people do goes out as messages.

import { el, listen } from "./_shared.js";
import { errorStrip } from "./error_strip.js";
import { compareTable, runDetails, runList } from "./history_table.js";
import { lossCurves } from "./loss_curves.js";

function render({ model, el: host, signal }) {
  const send = (type, id, value) => model.send({ type, id, value });
  const door = el("button", { class: "ll-button", type: "button" });
  door.addEventListener("click", () => {
    door.disabled = true; // until Python has answered
    send("open", "", !model.get("form").open);
  });
  const refresh = el("button", { class: "ll-button", type: "button", text: "Refresh" });
  refresh.addEventListener("click", () => send("refresh"));
  const said = el("span", { class: "ll-dim", role: "status" });
  const place_ = el("span", { class: "ll-past-folder ll-dim" });
  const list = runList(send);
  const curves = lossCurves();
  const table = compareTable();
  const comparison = el("div", { class: "ll-card ll-past-compared" },
    el("div", { class: "ll-head" }, el("span", { class: "ll-title", text: "Compared" })), curves.node, table.node);
  const details = runDetails(send);
  const strip = errorStrip();
  const body = el("div", { class: "ll-past-body" },
    el("div", { class: "ll-past-line" }, place_, el("span", { class: "ll-space" }), said, refresh),
    list.node, list.empty, comparison, details.node);
  const root = el(
    "section",
    { class: "ll-panel ll-history", "aria-label": "runs on disk", "data-lm-suppress-shortcuts": "true" },
    el("div", { class: "ll-head" },
      el("span", { class: "ll-title", text: "Runs" }),
      el("span", { text: "what was trained before: compare, open, resume" }),
      el("span", { class: "ll-space" }), door),
    body, strip.node,
  );

  const drawForm = () => {
    const form = model.get("form");
    door.disabled = false;
    door.textContent = form.open ? "Close" : "Open the runs";
    door.setAttribute("aria-expanded", String(form.open));
    body.hidden = !form.open;
    const more = form.total > form.rows.length ? `the newest ${form.rows.length} of ${form.total} runs` : `${form.total} run${form.total === 1 ? "" : "s"}`;
    place_.textContent = `${more} in ${form.folder}; tick up to six to compare them`;
    list.draw(form, model.get("details").id ?? "");
    drawBusy();
  };
  const drawCompared = () => {
    const found = model.get("compared");
    comparison.hidden = !found.rows?.length;
    if (comparison.hidden) return;
    const names = new Map(found.rows.map(({ id, label }) => [id, label]));
    curves.draw(found.curves.map(({ id, points }) => ({ label: names.get(id) ?? id, points })));
    table.draw(found);
  };
  const drawDetails = () => {
    details.draw(model.get("details"));
    list.draw(model.get("form"), model.get("details").id ?? "");
  };
  const drawBusy = () => {
    const busy = model.get("busy");
    said.textContent = busy;
    root.dataset.llState = busy ? "busy" : "rest";
    list.empty.hidden = Boolean(busy || model.get("form").rows.length);
  };
  const drawProblem = () => strip.draw(model.get("problem"));
  const unlisten = listen(model, {
    "change:form": drawForm,
    "change:compared": drawCompared,
    "change:details": drawDetails,
    "change:busy": drawBusy,
    "change:problem": drawProblem,
    "msg:custom": () => { door.disabled = false; },
  });
  const sizes = new ResizeObserver(() => {
    const room = Math.floor(root.clientWidth - 30);
    curves.resize(room);
    details.resize(room);
  });
  sizes.observe(root);
  // A notebook's own shortcuts must not take what is typed here.
  root.addEventListener("keydown", (event) => event.stopPropagation());
  host.append(root);
  drawForm();
  drawCompared();
  drawDetails();
  drawProblem();
  const cleanup = () => {
    sizes.disconnect();
    unlisten();
    root.remove();
  };
  signal?.addEventListener("abort", cleanup);
  return cleanup;
}

export default { render };
