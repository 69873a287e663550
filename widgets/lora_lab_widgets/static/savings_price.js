// @ts-check
// The price of a rank map: the formula of lora_lab.budget.evaluate.evaluate_price, to the byte.

import { formatCount } from "./_shared.js";

export const PARTS = ["weights", "gradients", "optimizer", "activations"];

const sumOf = (numbers) => numbers.reduce((total, n) => total + n, 0);

const entriesOf = (shape) => shape.reduce((product, n) => product * n, 1);

/** The bytes of an optimizer's state for one tensor: lora_lab.budget.optimizers.StateRule.size. */
function stateOf(rule, shape) {
  if (rule.per_side && shape.length > 1) return rule.per_side * sumOf(shape);
  const entries = entriesOf(shape);
  if (entries < rule.small_below) return rule.small_per_entry * entries;
  const blocks = rule.block ? rule.per_block * Math.ceil(entries / rule.block) : 0;
  return rule.per_entry * entries + blocks;
}

/** LoRA's share of a step, as lora_lab.methods.cost has it. */
function costOf(price, painted) {
  const zeros = () => price.rows.map(() => 0);
  const cost = {
    kept: zeros(), freed: zeros(), temporaries: zeros(), gradients: zeros(), // bytes by row
    liveInputs: new Set(), shapes: [], weights: 0, checkpoint: 0, forward: 0,
  };
  const together = new Map();
  for (const [name, r] of painted) {
    const site = price.sites[name];
    if (site.kind === "linear") {
      const key = `${site.row} ${site.group}`;
      together.set(key, [...(together.get(key) ?? []), [site, r]]);
    } else {
      train(cost, price, site, [[r, site.in], [site.out, r]]);
      if (price.lora.lengths && site.kind === "conv") {
        const size = price.adapter.weights;
        train(cost, price, site, [[site.out]]);
        cost.checkpoint += size * site.out;
        cost.kept[site.row] += site.out * (2 * size + site.tokens * site.element);
      }
      cost.checkpoint += r * site.checkpoint;
      cost.kept[site.row] += r * site.activations;
      cost.liveInputs.add(site.group);
    }
  }
  for (const sites of together.values()) addReaders(cost, price, sites);
  if (painted.length && price.whole) addHead(cost, price);
  return cost;
}

function train(cost, { adapter }, site, shapes) {
  const numbers = sumOf(shapes.map(entriesOf));
  cost.shapes.push(...shapes);
  cost.weights += numbers * adapter.weights;
  cost.gradients[site.row] += numbers * adapter.gradients;
}

/** A head that is trained whole beside any ranks: what lies outside the blocks is the last row. */
function addHead(cost, price) {
  train(cost, price, { row: price.rows.length - 1 }, price.whole);
  cost.checkpoint += price.adapter.weights * headOf(price);
}

/** Linear sites of one block that read one input, and share a pass through their A's. */
function addReaders(cost, price, sites) {
  const { lora } = price;
  const size = price.adapter.weights;
  const [first] = sites.reduce((least, pair) => (pair[0].at < least[0].at ? pair : least));
  const { row, last, tokens, element, in: width } = first;
  const castDown = element !== size;
  const stacked = castDown || sites.length * lora.copies > 1;
  for (const [site, r] of sites) {
    const shapes = lora.learns_A ? [[r, width], [site.out, r]] : [[site.out, r]];
    const frozen = lora.copies * r * (width + site.out) - sumOf(shapes.map(entriesOf));
    if (lora.lengths) shapes.push([site.out]);
    train(cost, price, site, shapes);
    if (site.again) cost.freed[row] -= sumOf(shapes.map(entriesOf)) * size;
    cost.weights += size * frozen;
    cost.checkpoint += lora.copies * r * site.checkpoint;
    const thin = lora.copies * r * tokens * element;
    cost.kept[row] += site.module === first.module ? thin : 2 * thin;
    if (stacked) cost.kept[row] += lora.copies * r * width * element;
    if (castDown) cost.kept[row] += lora.copies * r * site.out * element;
    if (lora.lengths) {
      cost.kept[row] += site.out * (2 * size + (castDown ? element : 0));
      if (castDown) cost.forward = Math.max(cost.forward, size * width * site.out);
    }
  }
  if (lora.learns_A) cost.liveInputs.add(first.group);
  if (lora.dropout) {
    cost.kept[row] += tokens * width;
    if (last) {
      cost.freed[row] += tokens * width;
      const widths = first.module_out + (lora.learns_A ? 4 + first.again : 3) * width;
      cost.temporaries[row] = Math.max(cost.temporaries[row], tokens * widths * element);
    }
  }
  if (!lora.lengths) return;
  for (const out of new Map(sites.map(([site]) => [site.module, site.module_out])).values()) {
    cost.checkpoint += size * out;
    cost.kept[row] += tokens * out * element;
    if (last) cost.freed[row] += tokens * out * element;
  }
}

/** {trainable, checkpoint, memory} of {site: rank}; a site that the table lacks is left out. */
export function evaluatePrice(price, ranks) {
  const { sites, groups, rows, optimizer: rule } = price;
  const painted = Object.entries(ranks).filter(([name, r]) => r > 0 && sites[name]);
  const first = painted.reduce((least, [name]) => Math.min(least, sites[name].order), Infinity);
  const kept = rows.map(({ pieces }) =>
    sumOf(pieces.map(([order, size]) => (order > first ? size : 0))));
  const cost = costOf(price, painted);
  for (const [row, bytes] of cost.kept.entries()) kept[row] += bytes;
  for (const key of cost.liveInputs) {
    const { row, bytes, spent: isFreed, unless } = groups[key];
    if (unless && first < unless) continue; // it is made again
    kept[row] += bytes;
    if (isFreed) cost.freed[row] += bytes;
  }
  const entries = cost.shapes.map(entriesOf);
  const scratch = Math.max(0, ...entries) * (rule.held + rule.carried);
  const peak = painted.length ? peakOf(price, cost, kept, scratch) : 0;
  const memory = {
    weights: price.weights + cost.weights,
    gradients: sumOf(cost.gradients),
    optimizer: sumOf(cost.shapes.map((shape) => stateOf(rule, shape))),
    activations: peak - sumOf(cost.gradients),
  };
  return { trainable: sumOf(entries), checkpoint: cost.checkpoint, memory };
}

/** The most bytes of activations and gradients alive: at the loss, in a block, at the end. */
function peakOf(price, { freed, temporaries, gradients, forward }, kept, scratch) {
  const twice = (i) => price.gradient_checkpointing && i < kept.length - 1;
  const stored = kept.map((k, i) => (twice(i) ? Math.min(k, price.rows[i].input) : k));
  let alive = sumOf(stored);
  let peak = alive + Math.max(price.head + price.loss, forward);
  for (let i = kept.length - 1; i >= 0; i -= 1) {
    if (kept[i]) {
      const again = twice(i) ? kept[i] : 0;
      const work = Math.max(price.rows[i].work - freed[i], temporaries[i]);
      peak = Math.max(peak, alive + again + work);
    }
    alive += gradients[i] - stored[i];
  }
  return Math.max(peak, alive + scratch);
}

export const totalOf = (memory) => sumOf(PARTS.map((part) => memory[part]));

/** How many parameters are trained of a head, beside any ranks. */
export const headOf = (price) => sumOf((price.whole ?? []).map(entriesOf));

/** 921600 → "0.92 M", 134515008 → "134.5 M"; whole below 100,000. */
export function formatParameters(count) {
  if (count < 1e5) return formatCount(count);
  const [value, unit] = count >= 999.95e6 ? [count / 1e9, "B"] : [count / 1e6, "M"];
  return `${value.toFixed(value < 9.995 ? 2 : 1)} ${unit}`;
}

export function formatShare(part, whole) {
  const percent = whole ? (100 * part) / whole : 0;
  const isTiny = percent > 0 && percent < 0.1;
  const digits = isTiny ? 1 - Math.floor(Math.log10(percent)) : percent < 10 ? 2 : 1;
  return `${percent.toFixed(digits)} %`;
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
