// Draws the plan's cost beside full fine-tuning's, at every stroke of the rank grid.
/* global el, listen, formatBytes, formatCount, PARTS, evaluatePrice, totalOf, formatParameters,
   formatShare, formatRatio, formatChange */

const CLOSE = 0.1; // a measured peak this near to the forecast gets its tick
const EMPTY = "–";
const EXPLAINED = {
  weights: "the model's, and A and B in float32",
  gradients: "of all that is trained",
  optimizer: "AdamW's two moments of every trained number",
  activations: "what the peak needs above the other three; gradients only come as activations go",
};

function bigNumber(name) {
  const value = el("b", { class: "ll-savings-number", text: EMPTY });
  const caption = el("span", { class: "ll-savings-caption ll-dim ll-label", text: name });
  return { node: el("div", {}, value, caption), value, caption };
}

function barRow(label, pieces) {
  const segments = Object.fromEntries(
    pieces.map((piece) => [piece, el("i", { class: `ll-savings-seg ll-savings-${piece}`, hidden: true })]),
  );
  const track = el("div", { class: "ll-savings-track" }, ...Object.values(segments));
  const value = el("span", { class: "ll-num", text: EMPTY });
  const mark = el("span", { class: "ll-savings-mark", text: "" });
  const node = el(
    "div",
    { class: "ll-savings-row", "aria-hidden": "true" },
    el("span", { text: label }),
    track,
    el("span", { class: "ll-savings-value" }, value, mark),
  );
  return { node, segments, value, mark };
}

function drawBar(row, sizes, scale) {
  for (const [piece, segment] of Object.entries(row.segments)) {
    const bytes = sizes?.[piece] ?? 0;
    segment.hidden = !(bytes > 0);
    segment.style.width = `${scale ? (100 * bytes) / scale : 0}%`;
  }
}

function breakdown(name, memory, approximate) {
  const lines = PARTS.map((part) => `${part}: ${formatBytes(memory[part])} – ${EXPLAINED[part]}`);
  const total = `${name}: ${formatBytes(totalOf(memory))} at the peak of a training step`;
  return [total, ...lines, ...(approximate ? ["activations are an estimate for this architecture"] : [])].join("\n");
}

/** The second legend: what the measured bar is of, and its two shades. */
function measuredKey() {
  const now = el("span", {});
  const text = el("span", {});
  const shades = ["now", "above"].map((shade) => el("i", { class: `ll-savings-${shade}` }));
  const node = el("div", { class: "ll-savings-key" }, el("span", {}, shades[0], now), el("span", {}, shades[1], "peak"), text);
  const draw = (reading) => {
    now.textContent = reading ? `now ${formatBytes(reading.current)}` : "now";
    text.textContent = reading ? reading.kind : "measured while a run trains";
  };
  return { node, draw };
}

/** The same numbers for screen readers, exact bytes at each cell. */
function twin(rows) {
  const cells = (memory) =>
    [...PARTS, "total"].map((part) => {
      const bytes = memory ? (part === "total" ? totalOf(memory) : memory[part]) : null;
      return el("td", { "data-ll-bytes": bytes, text: bytes === null ? "none" : formatBytes(bytes) });
    });
  const head = ["", ...PARTS, "total"].map((part) => el("th", { scope: "col", text: part }));
  return [
    el("caption", { text: "Peak memory of a training step" }),
    el("thead", {}, el("tr", {}, ...head)),
    el("tbody", {}, ...rows.map(([name, memory]) =>
      el("tr", {}, el("th", { scope: "row", text: name }), ...cells(memory)))),
  ];
}

function render({ model, el: host, signal }) {
  const [trainable, checkpoint, peak] = ["trainable", "checkpoint", "peak memory"].map(bigNumber);
  const full = barRow("full fine-tuning", PARTS);
  const plan = barRow("this plan", PARTS);
  const measured = barRow("measured peak", ["now", "above"]);
  measured.node.removeAttribute("aria-hidden"); // not in the table: it changes with every tick
  const settings = el("span", {});
  const kind = measuredKey();
  const legend = el(
    "div",
    { class: "ll-savings-key" },
    ...PARTS.map((part) =>
      el("span", { title: EXPLAINED[part] }, el("i", { class: `ll-savings-${part}` }), part)),
  );
  const table = el("table", {});
  const root = el(
    "section",
    { class: "ll-panel ll-savings", "aria-label": "Savings" },
    el("div", { class: "ll-head" }, el("span", { class: "ll-title", text: "Savings" }), settings),
    el("div", { class: "ll-savings-big" }, trainable.node, checkpoint.node, peak.node),
    full.node,
    plan.node,
    measured.node,
    legend,
    kind.node,
    el("div", { class: "ll-sr" }, table), // a table itself would not shrink to a pixel
  );

  let ranks = model.get("ranks");
  let forecast = null; // {full, plan}: total bytes, plan null while nothing is painted

  const drawMeasured = () => {
    const reading = model.get("measured");
    const known = reading.peak > 0;
    const scale = Math.max(forecast?.full ?? 0, forecast?.plan ?? 0, known ? reading.peak : 0);
    for (const [row, memory] of [[full, full.memory], [plan, plan.memory]]) drawBar(row, memory, scale);
    const above = known ? Math.max(0, reading.peak - reading.current) : 0;
    drawBar(measured, known ? { now: reading.current, above } : null, scale);
    measured.node.classList.toggle("ll-savings-waiting", !known);
    measured.value.textContent = known ? formatBytes(reading.peak) : EMPTY;
    const error = known && forecast?.plan ? reading.peak / forecast.plan - 1 : null;
    measured.mark.textContent = error !== null && Math.abs(error) <= CLOSE ? "✓" : "";
    const against = error === null ? "" : `, ${formatChange(reading.peak, forecast.plan)} against the forecast`;
    measured.node.title = known
      ? `${formatCount(reading.peak)} bytes at the peak${against}; ${formatCount(reading.current)} now`
      : "";
    kind.draw(known ? reading : null);
  };

  const drawPlan = () => {
    const price = model.get("price");
    const ready = Boolean(price.sites);
    const cost = ready ? evaluatePrice(price, ranks) : null;
    const painted = Boolean(cost?.trainable);
    const about = ready && price.approximate ? "≈ " : "";
    settings.textContent =
      model.get("settings_text") || (ready ? `against full fine-tuning, ${price.settings}` : "");
    root.classList.toggle("ll-savings-approximate", Boolean(about));
    root.dataset.llTrainable = painted ? cost.trainable : 0;
    root.dataset.llCheckpoint = painted ? cost.checkpoint : 0;

    full.memory = ready ? price.full : null;
    plan.memory = painted ? cost.memory : null;
    forecast = ready ? { full: totalOf(price.full), plan: painted ? totalOf(cost.memory) : null } : null;
    trainable.value.textContent = painted ? formatParameters(cost.trainable) : ready ? "0" : EMPTY;
    trainable.caption.textContent = painted
      ? `trainable of ${formatParameters(price.parameters)} (${formatShare(cost.trainable, price.parameters)})`
      : ready ? "paint a rank to see a plan" : "no model yet";
    checkpoint.value.textContent = painted ? formatBytes(cost.checkpoint) : EMPTY;
    checkpoint.caption.textContent = painted
      ? `checkpoint, ${formatRatio(price.weights, cost.checkpoint)} smaller`
      : "checkpoint";
    peak.value.textContent = painted ? about + formatChange(forecast.plan, forecast.full) : EMPTY;
    for (const [row, name] of [[full, "full fine-tuning"], [plan, "this plan"]]) {
      row.value.textContent = row.memory ? about + formatBytes(totalOf(row.memory)) : EMPTY;
      row.node.title = row.memory ? breakdown(name, row.memory, about) : "";
    }
    trainable.node.title = painted ? `${formatCount(cost.trainable)} of ${formatCount(price.parameters)} parameters` : "";
    checkpoint.node.title = painted
      ? `${formatCount(cost.checkpoint)} bytes, the whole model ${formatBytes(price.weights)}`
      : "";
    table.replaceChildren(...twin([["full fine-tuning", full.memory], ["this plan", plan.memory]]));
    drawMeasured();
  };

  const adopt = () => {
    ranks = model.get("ranks");
    drawPlan();
  };
  const painting = ({ detail }) => {
    if (detail.bench !== model.get("bench")) return;
    ranks = detail.ranks;
    drawPlan();
  };
  const unlisten = listen(model, {
    "change:price": drawPlan,
    "change:ranks": adopt,
    "change:settings_text": drawPlan,
    "change:measured": drawMeasured,
  });
  document.addEventListener("lora-lab:ranks", painting);
  const close = () => {
    unlisten();
    document.removeEventListener("lora-lab:ranks", painting);
  };
  signal?.addEventListener("abort", close);
  drawPlan();
  host.append(root);
  return close;
}

export default { render };
