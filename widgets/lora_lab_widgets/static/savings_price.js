// The price of a rank map: the same formula as lora_lab.budget.evaluate_price, and the same numbers.
/* global formatCount */

const PARTS = ["weights", "gradients", "optimizer", "activations"];

const sumOf = (numbers) => numbers.reduce((total, n) => total + n, 0);

/** The bytes of an optimizer's state for one matrix, as lora_lab.budget.optimizers.StateRule.size. */
function stateOf(rule, rows, columns) {
  if (rule.per_side) return rule.per_side * (rows + columns);
  const entries = rows * columns;
  if (entries < rule.small_below) return rule.small_per_entry * entries;
  return rule.per_entry * entries + (rule.block ? rule.per_block * Math.ceil(entries / rule.block) : 0);
}

/** {trainable, checkpoint, memory} of {site: rank}; a site that the table lacks is left out. */
function evaluatePrice(price, ranks) {
  const { sites, groups, rows, adapter, optimizer: rule } = price;
  const painted = Object.entries(ranks).filter(([name, r]) => r > 0 && sites[name]);
  const first = painted.reduce((least, [name]) => Math.min(least, sites[name].order), Infinity);
  const kept = rows.map((row) => sumOf(row.pieces.map(([order, size]) => (order > first ? size : 0))));
  const spent = rows.map(() => 0);
  const gradients = rows.map(() => 0);
  for (const key of new Set(painted.map(([name]) => sites[name].group))) {
    const { row, bytes, spent: freed } = groups[key];
    kept[row] += bytes;
    if (freed) spent[row] += bytes;
  }
  let [trainable, checkpoint, optimizer, largest] = [0, 0, 0, 0];
  for (const [name, r] of painted) {
    const site = sites[name];
    const parameters = r * (site.in + site.out);
    kept[site.row] += r * site.activations;
    gradients[site.row] += parameters * adapter.gradients;
    trainable += parameters;
    checkpoint += r * site.checkpoint;
    optimizer += stateOf(rule, r, site.in) + stateOf(rule, site.out, r);
    largest = Math.max(largest, r * site.in, r * site.out);
  }
  const scratch = largest * (rule.held + rule.carried);
  const peak = painted.length ? peakOf(price, kept, spent, gradients, scratch) : 0;
  const memory = {
    weights: price.weights + trainable * adapter.weights,
    gradients: trainable * adapter.gradients,
    optimizer,
    activations: peak - sumOf(gradients),
  };
  return { trainable, checkpoint, memory };
}

/** The most bytes of activations and gradients alive at once: at the loss, in a block, at the end. */
function peakOf(price, kept, spent, gradients, scratch) {
  const checkpointing = price.gradient_checkpointing;
  const stored = kept.map((k, i) => (checkpointing ? Math.min(k, price.rows[i].input) : k));
  let alive = sumOf(stored);
  let peak = alive + price.head + price.loss;
  for (let i = kept.length - 1; i >= 0; i -= 1) {
    if (kept[i]) {
      const again = checkpointing ? kept[i] : 0;
      peak = Math.max(peak, alive + again - spent[i] + price.rows[i].work);
    }
    alive += gradients[i] - stored[i];
  }
  return Math.max(peak, alive + scratch);
}

const totalOf = (memory) => sumOf(PARTS.map((part) => memory[part]));

/** 921600 → "0.92 M", 134515008 → "134.5 M"; whole below 100,000. */
function formatParameters(count) {
  if (count < 1e5) return formatCount(count);
  const [value, unit] = count >= 999.95e6 ? [count / 1e9, "B"] : [count / 1e6, "M"];
  return `${value.toFixed(value < 9.995 ? 2 : 1)} ${unit}`;
}

function formatShare(part, whole) {
  const percent = whole ? (100 * part) / whole : 0;
  if (percent > 0 && percent < 0.1) return `${percent.toFixed(1 - Math.floor(Math.log10(percent)))} %`;
  return `${percent.toFixed(percent < 10 ? 2 : 1)} %`;
}

function formatRatio(large, small) {
  if (!small) return "–";
  const ratio = large / small;
  return `${ratio < 9.95 ? ratio.toFixed(1) : formatCount(Number(ratio.toFixed(0)))}×`;
}

function formatChange(now, before) {
  const percent = before ? Number(Math.abs((100 * (now - before)) / before).toFixed(0)) : 0;
  const sign = percent === 0 ? "" : now < before ? "−" : "+";
  return `${sign}${percent} %`;
}
