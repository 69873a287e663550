// A heat map, layers to the right and roles downwards. Draws `values` over `sites`: both `values`
// and `ranks` hold one number a site, in the order of `sites`, or null.

import { el, listen, VIRIDIS, viridis } from "./_shared.js";

const VALUE_TEXT = "effective rank";

function render({ model, el: host, signal }) {
  const [rows, roles] = [model.get("rows"), model.get("roles")];
  const cells = new Map(); // name → {node, label, row, role, place}
  const at = new Map(); // "row,role" → name
  const grid = el("div", {
    class: "ll-map", role: "grid", "aria-label": `${VALUE_TEXT} of ΔW, layers across, roles down`,
    "aria-readonly": "true",
  });
  grid.style.gridTemplateColumns = `max-content repeat(${rows.length}, minmax(0, 1fr))`;
  model.get("sites").forEach(([name, label, row, role], place) => {
    const node = el("div", { class: "ll-map-cell", role: "gridcell", tabindex: -1 });
    node.dataset.site = name;
    cells.set(name, { node, label, row, role, place });
    at.set(`${row},${role}`, name);
  });
  roles.forEach((role, i) => {
    const line = rows.map((_, row) => cells.get(at.get(`${row},${i}`))?.node ?? el("div", { role: "gridcell", "aria-label": "no such matrix" }));
    grid.append(el("div", { class: "ll-map-row", role: "row" }, el("div", { class: "ll-map-role", role: "rowheader", text: role }), ...line));
  });
  const axis = el("div", { class: "ll-map-axis", "aria-hidden": "true" });
  grid.append(axis);
  const caption = el("div", { class: "ll-map-caption" });
  const top = el("span");
  const ramp = el("i", { class: "ll-map-ramp" });
  ramp.style.background = `linear-gradient(90deg, ${VIRIDIS.map((c) => `rgb(${c})`).join(", ")})`;
  const key = el("div", { class: "ll-map-key ll-dim", "aria-hidden": "true" },
    el("i", { class: "ll-map-none" }), "no ΔW", el("span", { text: "0" }), ramp, top);
  const root = el(
    "section",
    { class: "ll-panel ll-map-panel", "aria-label": "effective rank of every site", "data-lm-suppress-shortcuts": "true" },
    el("div", { class: "ll-head" }, el("span", { class: "ll-title", text: "Effective rank" }), el("span", { text: "of ΔW, layer →" }), el("span", { class: "ll-space" }), key),
    grid,
    caption,
  );

  let hovered = null;
  const texts = new Map();
  const describe = (name) => {
    const { label, place } = cells.get(name);
    const value = model.get("values")[place] ?? null;
    const rank = model.get("ranks")[place];
    if (value !== null) return `${label} · ${VALUE_TEXT} ${value.toFixed(1)}${rank ? ` of ${rank}` : ""}`;
    return rank ? `${label} · rank ${rank}, not trained yet` : `${label} · no adapter`;
  };
  const say = () => {
    const name = hovered ?? model.get("selected");
    caption.textContent = cells.has(name) ? describe(name) : "click a cell, or use the arrow keys";
  };
  const draw = () => {
    const values = model.get("values");
    const limit = Math.max(1, ...model.get("ranks"), ...values);
    top.textContent = Number.isInteger(limit) ? limit : limit.toFixed(1);
    for (const [name, { node, place }] of cells) {
      const text = describe(name);
      const value = values[place] ?? null;
      const look = `${text}/${limit}`;
      if (texts.get(name) === look) continue;
      texts.set(name, look);
      node.setAttribute("aria-label", text);
      node.style.background = value === null ? "" : `rgb(${viridis(value / limit)})`;
      node.toggleAttribute("data-ll-value", value !== null);
    }
    say();
  };
  const drawSelected = () => {
    const selected = model.get("selected");
    const stop = cells.has(selected) ? selected : cells.keys().next().value;
    for (const [name, { node }] of cells) {
      node.tabIndex = name === stop ? 0 : -1;
      node.setAttribute("aria-selected", String(name === selected));
    }
    say();
  };
  const drawAxis = () => {
    const room = grid.clientWidth / Math.max(1, rows.length);
    const widest = Math.max(...rows.map((row) => row.length)) * 7 + 8;
    const every = [1, 2, 5, 10, 20, 50, 100].find((n) => n * room >= widest) ?? 200;
    axis.replaceChildren(el("span"), ...rows.map((row, i) => el("span", { text: i % every ? "" : row })));
  };

  const select = (name) => {
    model.set("selected", name); // the page's other views follow at once
    model.send({ type: "select", site: name });
  };
  const nameOf = (event) => event.target.closest?.(".ll-map-cell")?.dataset.site;
  const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  const next = (name, key) => {
    let { row, role } = cells.get(name);
    if (key === "Home" || key === "End") {
      const line = [...cells].filter(([, cell]) => cell.role === role).map(([each]) => each);
      return key === "Home" ? line[0] : line.at(-1);
    }
    const [right, down] = STEPS[key];
    for (;;) {
      row += right;
      role += down;
      if (row < 0 || role < 0 || row >= rows.length || role >= roles.length) return name;
      const found = at.get(`${row},${role}`);
      if (found) return found; // a hole in the grid is stepped over
    }
  };
  grid.addEventListener("click", (event) => {
    const name = nameOf(event);
    if (name) select(name);
  });
  grid.addEventListener("keydown", (event) => {
    event.stopPropagation(); // the notebook has shortcuts of its own
    const name = nameOf(event);
    if (!name || event.ctrlKey || event.metaKey || event.altKey) return;
    const chooses = event.key === "Enter" || event.key === " ";
    if (!chooses && !(event.key in STEPS) && event.key !== "Home" && event.key !== "End") return;
    event.preventDefault();
    const target = chooses ? name : next(name, event.key);
    cells.get(target).node.focus();
    select(target);
  });
  const look = (event) => {
    hovered = nameOf(event) ?? null;
    say();
  };
  const unlook = () => {
    hovered = null;
    say();
  };
  grid.addEventListener("pointerover", look);
  grid.addEventListener("pointerleave", unlook);
  grid.addEventListener("focusin", look);
  grid.addEventListener("focusout", unlook);

  const unlisten = listen(model, {
    "change:values": draw,
    "change:ranks": draw,
    "change:selected": drawSelected,
  });
  const sizes = new ResizeObserver(drawAxis);
  sizes.observe(root);
  host.append(root);
  draw();
  drawSelected();
  const cleanup = () => {
    sizes.disconnect();
    unlisten();
    root.remove();
  };
  signal?.addEventListener("abort", cleanup);
  return cleanup;
}

export default { render };
