"""What was published, as rules: each gives a value, the finding that it rests on, and its source.

What is no finding but a habit, or a bound taken for an estimate, is marked as a heuristic.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lora_lab._util.format import format_count
from lora_lab.advice.facts import Facts
from lora_lab.methods.descriptor import WIDE
from lora_lab.methods.registry import methods
from lora_lab.spectra.capacity import capacity_bits

LORA = "Hu et al., 2022"
REGRET = "Schulman & Thinking Machines, LoRA Without Regret, 2025"
LESS = "Biderman et al., LoRA Learns Less and Forgets Less, 2024"
RANKS = (8, 16, 32, 64, 128, 256)
FEW, MANY = 1_000, 100_000  # examples
_SHORT = 100  # steps of a run that takes a higher rate


@dataclass(frozen=True)
class Recommendation:
    """One setting, and what it rests on.

    Attributes:
        setting: the field's name in `LoraConfig` or `TrainingConfig`; "method".
        value: that is recommended.
        finding: what was found, in a sentence or two.
        source: by whom; "measured" of what was counted here.
        heuristic: it is no finding, but a habit, a start value, or a bound taken for an estimate.
    """

    setting: str
    value: Any
    finding: str
    source: str
    heuristic: bool = False

    @property
    def shown(self) -> str:
        """The value for people."""
        if isinstance(self.value, float):
            return f"{self.value:.3g}"
        listed = isinstance(self.value, (list, tuple))
        return ", ".join(self.value) if listed else str(self.value)


def data_bits(facts: Facts) -> float | None:
    """Return what the training examples have to say at most; None: nobody knows."""
    if facts.examples is None or facts.bits is None:
        return None
    return facts.examples * facts.bits


def rank_for(parameters_of_r1: int, widest: int, bits: float | None) -> tuple[int, bool]:
    """Return the rank whose capacity reaches the data's bits, and whether it does.

    Args:
        parameters_of_r1: trainable with r = 1.
        widest: rank above which A and B are as large as the matrix they change.
        bits: of the data; None: not known.
    """
    ranks = [r for r in RANKS if r <= widest] or [max(1, widest)]
    if bits is None:
        return ranks[min(1, len(ranks) - 1)], True
    fitting = [r for r in ranks if capacity_bits(r * parameters_of_r1) >= bits]
    return (fitting[0], True) if fitting else (ranks[-1], False)


def method(facts: Facts, learns_all: bool) -> Recommendation:
    """Say LoRA, or FT where the data are more than any rank holds."""
    if learns_all:
        return Recommendation(
            "method",
            "FT",
            "the data have more to say than LoRA of any sensible rank can store, and full "
            "fine-tuning fits into the memory: with 20B tokens of code it has 0.263 on HumanEval "
            "where LoRA of r = 256 has 0.224. It forgets more (0.545 where LoRA keeps 0.617)",
            LESS,
            heuristic=True,
        )
    few = facts.examples is not None and facts.examples <= FEW
    finding = (
        "with 100 examples of MNLI LoRA has 63.8 %, FT 60.2, PrefixLayer 48.3, PrefixEmbed 37.6"
        if few
        else "on MNLI LoRA has 91.7 % with 4.7M trainable parameters, FT 89.5, BitFit 91.0, "
        "adapters 89.8 with 7.1M, prefixes 89.5 and 88.6"
    )
    where = "table 16" if few else "table 4"
    return Recommendation("method", "LoRA", f"{finding} (GPT-3)", f"{LORA}, {where}")


def targets(narrow: bool) -> Recommendation:
    """Say every linear layer; q and v where the memory leaves no other choice."""
    if narrow:
        return Recommendation(
            "target_modules",
            ("q", "v"),
            "fewer inputs have to be kept, and all linear layers do not fit into the memory; with "
            "18M parameters q and v have 73.7 % on WikiSQL as q, k, v and o have (GPT-3)",
            f"{LORA}, table 5",
        )
    return Recommendation(
        "target_modules",
        "all-linear",
        "the MLP's matrices matter most: attention alone learns less, at more parameters too. At "
        "0.3M parameters all matrices have 90.30 on MNLI and 68.71 on CoLA, q and v 89.80 and "
        "67.04 (DeBERTaV3)",
        f"{REGRET}; Zhang et al., 2023, table 14",
    )


def rank(r: int, enough: bool, parameters: int, bits: float | None) -> Recommendation:
    """Say the rank, by what it can store."""
    if bits is None:
        finding = (
            "from r = 1 to r = 64 accuracies differ by 0.5 points or less on WikiSQL and on MNLI, "
            "where q, k, v and o are adapted (GPT-3). Name a task, and what it has to say is "
            "counted"
        )
        return Recommendation("r", r, finding, f"{LORA}, table 6", heuristic=True)
    held = format_count(capacity_bits(parameters))
    verdict = "enough" if enough else "less, and no rank that pays holds them"
    return Recommendation(
        "r",
        r,
        f"a parameter stores about 2 bits: {held} bits here. The data have at most "
        f"{format_count(bits)} (a bit a learned token, or a class's), so that this is {verdict}",
        REGRET,
        heuristic=True,
    )


def rate_and_alpha(
    facts: Facts, r: int, steps: int | None, everything: bool
) -> list[Recommendation]:
    """Say the learning rate and α, both of one source: one means nothing without the other."""
    width = facts.anatomy.shape.hidden_size or 2000
    own = methods()["FT" if everything else "LoRA"]
    if width < WIDE and facts.kind in ("prompts", "texts"):
        return _of_small(own.rate_for(width), own.rate_reason(width), r, everything)
    power = _POWERS.get(facts.anatomy.shape.model_type)
    if power is not None:
        rate, alpha = 5e-4 * (2000 / width) ** power, 32
        finding = f"5e-5 · 10 · (2000 / {width})^{power}: ten times FT's best rate, whatever r is"
        source, way = f"{REGRET}, and its tinker-cookbook", "as the rate's formula was fitted with"
    elif facts.kind in ("classes", "numbers"):
        rate, alpha = (5e-4 if width < 1000 else 3e-4), 2 * r
        finding = "RoBERTa on GLUE: 4e-4 or 5e-4 (base), 2e-4 to 4e-4 (large)"
        if width < WIDE:
            finding += f", 768 and 1,024 wide; nobody has tried it on classes {width} wide"
        source, way = f"{LORA}, table 9", "α = 16 with r = 8, as RoBERTa-large's"
    else:
        rate, alpha = 5e-4, 32
        finding = "ten times the 5e-5 that FT takes as a rule; in 14 models the best is 9.8 times"
        source, way = REGRET, "as it was found with"
    if steps is not None and steps < _SHORT:
        rate *= 1.5
        finding += f"; half as much again for fewer than {_SHORT} steps ({steps} here)"
    finding += ". Try a third of it, and three times as much"
    if everything:
        found = f"a tenth of LoRA's ({rate:.3g}): {finding}"
        return [Recommendation("learning_rate", _rounded(rate / 10), found, source, True)]
    return [
        Recommendation("learning_rate", _rounded(rate), finding, source, heuristic=True),
        Recommendation("lora_alpha", alpha, _about_alpha(alpha, r, way), source, heuristic=True),
    ]


def _of_small(rate: float, reason: str, r: int, everything: bool) -> list[Recommendation]:
    """Say what the workbench's form begins with on a model as small as those that it was tried on.

    The published formulas are of models ten times as wide and more.
    """
    source = "measured on mini-llama"
    found = f"{reason}. Try a third of it, and three times as much"
    told = [Recommendation("learning_rate", rate, found, source, heuristic=True)]
    if not everything:
        alpha = 2 * r
        about = _about_alpha(alpha, r, "as the rate was found with")
        told.append(Recommendation("lora_alpha", alpha, about, source, heuristic=True))
    return told


# Of widths, by model_type: fitted to models of these families.
_POWERS = {"llama": 0.781, "qwen2": 0.0775, "qwen3": 0.0775}


def _about_alpha(alpha: int, r: int, way: str) -> str:
    other = "" if alpha == 2 * r else f"; Biderman et al. take 2r, here {2 * r}"
    return f"{way}: ΔW is scaled by α/r = {alpha / r:g}{other}"


def _rounded(rate: float) -> float:
    """Return two significant digits, as people write a rate."""
    return float(f"{rate:.1e}")


def step_size(facts: Facts) -> int:
    """Return the examples of an optimizer step."""
    size = 16 if facts.kind in ("classes", "numbers") else 8
    return max(1, min(size, facts.examples or size))


def batch(facts: Facts, size: int, passes: int, memory: str) -> Recommendation:
    """Say the batch, by habit and by what fits."""
    few = "small: large batches cost LoRA more than FT, and rank does not cure that; "
    table = "16 or 32 on GLUE" if facts.kind in ("classes", "numbers") else "8 on E2E"
    where = "table 9" if facts.kind in ("classes", "numbers") else "table 11"
    more = f"; {passes} passes of it make a step of {size * passes}" if passes > 1 else ""
    finding = f"{few}the paper's is {table}{more}. {memory}"
    return Recommendation(
        "per_device_train_batch_size", size, finding, f"{REGRET}; {LORA}, {where}", heuristic=True
    )


def epochs(facts: Facts) -> Recommendation | None:
    """Say how often to go through the data; None: nobody knows how much there is."""
    if facts.examples is None:
        return None
    classes = facts.kind in ("classes", "numbers")
    if facts.kind == "texts":
        value, found, where = 1, "every text once, as in pretraining", "a habit"
    elif facts.examples <= FEW:
        value, found, where = 40, "40 with 100 and with 1,000 examples of MNLI", f"{LORA}, table 17"
    elif facts.examples > MANY:
        value, found, where = 2, "2 with 392,000 examples of MNLI", f"{LORA}, table 17"
    elif classes:
        value, found, where = 10, "RoBERTa-large on GLUE: 10 to 30", f"{LORA}, table 9"
    else:
        value, found, where = 5, "5 on E2E's 42,000 examples", f"{LORA}, table 11"
    advice = f"{found}. Score held-out examples meanwhile (eval_strategy), and stop when it rises"
    return Recommendation("num_train_epochs", value, advice, where, heuristic=True)


def max_length(facts: Facts) -> Recommendation | None:
    """Say the length, of what was counted; None: nobody has counted."""
    if facts.length is None:
        return None
    finding = "the longest training example has so many tokens"
    if facts.longest is None:
        whole = facts.length != facts.anatomy.shape.position_limit
        finding = "the length of an example that was named" if whole else "the model reads no more"
        return Recommendation("max_length", max(8, facts.length), finding, "as it was named")
    if facts.length == facts.anatomy.shape.position_limit and facts.length != facts.longest:
        finding = f"the model reads no more; the longest training example has {facts.longest:,}"
    elif facts.length != facts.longest:
        finding = (
            f"99 % of the training examples have no more tokens, the longest {facts.longest:,}: "
            "those above are cut"
        )
    return Recommendation("max_length", max(8, facts.length), finding, "measured")
