// The price of a rank map: the same formula as lora_lab.budget.evaluate_price, and the same numbers.

import { formatCount } from "./_shared.js";

export const PARTS = ["weights", "gradients", "optimizer", "activations"];

const sumOf = (numbers) => numbers.reduce((total, n) => total + n, 0);

const entriesOf = (shape) => shape.reduce((product, n) => product * n, 1);

/** The bytes of an optimizer's state for one tensor, as lora_lab.budget.optimizers.StateRule.size. */
function stateOf(rule, shape) {
  if (rule.per_side && shape.length > 1) return rule.per_side * sumOf(shape);
  const entries = entriesOf(shape);
  if (entries < rule.small_below) return rule.small_per_entry * entries;
  return rule.per_entry * entries + (rule.block ? rule.per_block * Math.ceil(entries / rule.block) : 0);
}

/** One method's share of a step, as lora_lab.budget.part.lora_part. */
function partOf(price, painted) {
  const empty = () => price.rows.map(() => 0);
  const part = { kept: empty(), spent: empty(), work: empty(), gradients: empty(), groups: new Set() };
  Object.assign(part, { shapes: [], weights: 0, checkpoint: 0, forward: 0 });
  const together = new Map();
  for (const [name, r] of painted) {
    const site = price.sites[name];
    if (site.kind === "linear") {
      const key = `${site.row} ${site.group}`;
      together.set(key, [...(together.get(key) ?? []), [site, r]]);
    } else {
      train(part, price, site, [[r, site.in], [site.out, r]]);
      part.checkpoint += r * site.checkpoint;
      part.kept[site.row] += r * site.activations;
      part.groups.add(site.group);
    }
  }
  for (const sites of together.values()) addReaders(part, price, sites);
  return part;
}

function train(part, { adapter }, site, shapes) {
  const numbers = sumOf(shapes.map(entriesOf));
  part.shapes.push(...shapes);
  part.weights += numbers * adapter.weights;
  part.gradients[site.row] += numbers * adapter.gradients;
}

/** Linear sites of one block that read one input, and share a pass through their A's. */
function addReaders(part, price, sites) {
  const { element, lora } = price;
  const size = price.adapter.weights;
  const castDown = element !== size;
  const [first] = sites.reduce((least, pair) => (pair[0].at < least[0].at ? pair : least));
  const { row, last, tokens, in: width } = first;
  const stacked = castDown || sites.length * lora.copies > 1;
  for (const [site, r] of sites) {
    const shapes = lora.learns_A ? [[r, width], [site.out, r]] : [[site.out, r]];
    const frozen = lora.copies * r * (width + site.out) - sumOf(shapes.map(entriesOf));
    if (lora.lengths) shapes.push([site.out]);
    train(part, price, site, shapes);
    part.weights += size * frozen;
    part.checkpoint += lora.copies * r * site.checkpoint;
    const thin = lora.copies * r * tokens * element;
    part.kept[row] += site.module === first.module ? thin : 2 * thin;
    if (stacked) part.kept[row] += lora.copies * r * width * element;
    if (castDown) part.kept[row] += lora.copies * r * site.out * element;
    if (lora.lengths) {
      part.kept[row] += site.out * (2 * size + (castDown ? element : 0));
      if (castDown) part.forward = Math.max(part.forward, size * width * site.out);
    }
  }
  if (lora.learns_A) part.groups.add(first.group);
  if (lora.dropout) {
    part.kept[row] += tokens * width;
    if (last) {
      part.spent[row] += tokens * width;
      const widths = first.module_out + (lora.learns_A ? 4 : 3) * width;
      part.work[row] = Math.max(part.work[row], tokens * widths * element);
    }
  }
  if (!lora.lengths) return;
  for (const out of new Map(sites.map(([site]) => [site.module, site.module_out])).values()) {
    part.checkpoint += size * out;
    part.kept[row] += tokens * out * element;
    if (last) part.spent[row] += tokens * out * element;
  }
}

/** {trainable, checkpoint, memory} of {site: rank}; a site that the table lacks is left out. */
export function evaluatePrice(price, ranks) {
  const { sites, groups, rows, optimizer: rule } = price;
  const painted = Object.entries(ranks).filter(([name, r]) => r > 0 && sites[name]);
  const first = painted.reduce((least, [name]) => Math.min(least, sites[name].order), Infinity);
  const kept = rows.map((row) => sumOf(row.pieces.map(([order, size]) => (order > first ? size : 0))));
  const part = partOf(price, painted);
  part.kept.forEach((bytes, row) => (kept[row] += bytes));
  for (const key of part.groups) {
    const { row, bytes, spent: freed } = groups[key];
    kept[row] += bytes;
    if (freed) part.spent[row] += bytes;
  }
  const entries = part.shapes.map(entriesOf);
  const scratch = Math.max(0, ...entries) * (rule.held + rule.carried);
  const peak = painted.length ? peakOf(price, part, kept, scratch) : 0;
  const memory = {
    weights: price.weights + part.weights,
    gradients: sumOf(part.gradients),
    optimizer: sumOf(part.shapes.map((shape) => stateOf(rule, shape))),
    activations: peak - sumOf(part.gradients),
  };
  return { trainable: sumOf(entries), checkpoint: part.checkpoint, memory };
}

/** The most bytes of activations and gradients alive at once: at the loss, in a block, at the end. */
function peakOf(price, { spent, work, gradients, forward }, kept, scratch) {
  const twice = (i) => price.gradient_checkpointing && i < kept.length - 1;
  const stored = kept.map((k, i) => (twice(i) ? Math.min(k, price.rows[i].input) : k));
  let alive = sumOf(stored);
  let peak = alive + Math.max(price.head + price.loss, forward);
  for (let i = kept.length - 1; i >= 0; i -= 1) {
    if (kept[i]) {
      const again = twice(i) ? kept[i] : 0;
      peak = Math.max(peak, alive + again + Math.max(price.rows[i].work - spent[i], work[i]));
    }
    alive += gradients[i] - stored[i];
  }
  return Math.max(peak, alive + scratch);
}

export const totalOf = (memory) => sumOf(PARTS.map((part) => memory[part]));

/** 921600 → "0.92 M", 134515008 → "134.5 M"; whole below 100,000. */
export function formatParameters(count) {
  if (count < 1e5) return formatCount(count);
  const [value, unit] = count >= 999.95e6 ? [count / 1e9, "B"] : [count / 1e6, "M"];
  return `${value.toFixed(value < 9.995 ? 2 : 1)} ${unit}`;
}

export function formatShare(part, whole) {
  const percent = whole ? (100 * part) / whole : 0;
  if (percent > 0 && percent < 0.1) return `${percent.toFixed(1 - Math.floor(Math.log10(percent)))} %`;
  return `${percent.toFixed(percent < 10 ? 2 : 1)} %`;
}

export function formatRatio(large, small) {
  if (!small) return "–";
  const ratio = large / small;
  return `${ratio < 9.95 ? ratio.toFixed(1) : formatCount(Number(ratio.toFixed(0)))}×`;
}

export function formatChange(now, before) {
  const percent = before ? Number(Math.abs((100 * (now - before)) / before).toFixed(0)) : 0;
  const sign = percent === 0 ? "" : now < before ? "−" : "+";
  return `${sign}${percent} %`;
}
