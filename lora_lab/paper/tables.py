"""The rows of Hu et al. (2022), tables 2 to 5 and 15, that print a number of parameters.

Scores are read of the printed tables. What does not come out stays as printed, with a note.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lora_lab.methods.bottleneck.config import BottleneckConfig
from lora_lab.methods.config import MethodConfig
from lora_lab.methods.full.config import BitFitConfig, FullConfig
from lora_lab.methods.lora.config import LoraConfig
from lora_lab.methods.prompt_tuning.config import PrefixEmbedConfig, PrefixLayerConfig
from lora_lab.paper.printed import printed_table
from lora_lab.paper.rows import PublishedRow

_NO_OFFSET = "L·d(l_p + l_i) gives less in all five rows of table 15, by no common offset"
_BINARY = "comes out only if the weights alone are divided by 2²⁰"
_QV, _ALL = ("q", "v"), ("q", "k", "v", "o")


def _lora(r: int, targets: tuple[str, ...] = _QV) -> LoraConfig:
    return LoraConfig(r=r, target_modules=targets)


def _row(
    table: str,
    model: str,
    printed: str,
    configs: MethodConfig | tuple[MethodConfig, ...],
    setting: str,
    scores: dict[str, float],
    **more: Any,
) -> PublishedRow:
    if not isinstance(configs, tuple):
        configs = (configs,)
    method = more.pop("method", configs[0].method)
    return PublishedRow(table, model, method, configs, printed, scores, setting=setting, **more)


_PREFIXES = {"PrefixEmbed": "PreEmbed", "PrefixLayer": "PreLayer"}


def _scores(number: int, names: Mapping[str, str], **cells: str) -> dict[str, float]:
    """Return {name: score} of the first row of a printed table that has these cells.

    Args:
        number: the table's.
        names: {column: how a row calls the score}.
        cells: {column: text}; marks, and the zeros at a number's end, make no difference.
    """
    found = printed_table("LoRA", str(number))
    for place, row in enumerate(found.rows):
        own = dict(zip(found.header, row, strict=True))
        if all(_plain(own[column]) == _plain(text) for column, text in cells.items()):
            scores = {label: found.column(name)[place] for name, label in names.items()}
            return {label: score for label, score in scores.items() if score is not None}
    raise KeyError(f"table {number} prints no row with {cells}")


def _plain(cell: str) -> float | str:
    text = cell.rstrip("*†‡ M").replace(",", "")
    try:
        return float(text)
    except ValueError:
        return _PREFIXES.get(text, text)


# --- table 2: GLUE -------------------------------------------------------------------------------


_GLUE_MODELS = {
    "roberta-base": "RoBERTa-base",
    "roberta-large": "RoBERTa-large",
    "deberta-v2-xxlarge": "DeBERTa-XXL",
}


def _glue(model: str, printed: str, config: MethodConfig, **more: Any) -> PublishedRow:
    setting = f"r = {config.r}" if isinstance(config, (LoraConfig, BottleneckConfig)) else ""
    own = {"model": _GLUE_MODELS[model], "method": config.method, "parameters": printed}
    scores = _scores(2, {"Avg": "GLUE average"}, **own)
    return _row("Table 2", model, printed, config, setting, scores, **more)


_ROUNDED = "printed as {}.0M; encoder and pooler, rounded to a million"
_TABLE_2 = (
    _glue(
        "roberta-base",
        "125",
        FullConfig(),
        architecture="RobertaModel",
        note=_ROUNDED.format(125),
    ),
    _glue("roberta-base", "0.1", BitFitConfig()),
    _glue("roberta-base", "0.3", BottleneckConfig("D", 16)),
    _glue("roberta-base", "0.9", BottleneckConfig("D", 48)),
    _glue("roberta-base", "0.3", _lora(8)),
    _glue(
        "roberta-large",
        "355",
        FullConfig(),
        architecture="RobertaModel",
        note=_ROUNDED.format(355),
    ),
    _glue("roberta-large", "0.8", _lora(8)),
    _glue("roberta-large", "3.0", BottleneckConfig("P", 64), note=_BINARY),
    _glue("roberta-large", "0.8", BottleneckConfig("P", 16)),
    _glue("roberta-large", "6.0", BottleneckConfig("H", 64), note=_BINARY),
    _glue("roberta-large", "0.8", BottleneckConfig("H", 8)),
    _glue(
        "deberta-v2-xxlarge",
        "4.7",
        _lora(16),
        note="r = 16 as in the authors' scripts; appendix D prints r = 8, which is 2.4M",
    ),
)

# --- table 3: E2E with GPT-2 ---------------------------------------------------------------------


def _e2e(size: str, printed: str, config: MethodConfig, **more: Any) -> PublishedRow:
    setting = f"r = {config.r}" if isinstance(config, (LoraConfig, BottleneckConfig)) else ""
    own = {"model": f"GPT-2 {size}", "method": config.method, "parameters": printed}
    scores = _scores(3, {"BLEU": "BLEU"}, **own)
    return _row("Table 3", f"gpt2-{size}", printed, config, setting, scores, **more)


_TABLE_3 = (
    _e2e("medium", "354.92", FullConfig(), note="0.10M more than GPT-2 medium has"),
    _e2e("medium", "0.37", BottleneckConfig("L", 6)),
    _e2e("medium", "11.09", BottleneckConfig("L", 224)),
    _e2e("medium", "11.09", BottleneckConfig("H", 112), note="no whole r gives it; 112 is next"),
    _e2e("medium", "25.19", FullConfig(top_layers=2), note="24M in tables 13 and 14"),
    _e2e("medium", "0.35", _lora(4), note="0.35M is 0.1 % of 354.92M, as in PreLayer's row"),
    _e2e("large", "774.03", FullConfig()),
    _e2e("large", "0.88", BottleneckConfig("L", 8)),
    _e2e("large", "23.00", BottleneckConfig("L", 248)),
    _e2e("large", "0.77", _lora(4), note="0.77M is 0.1 % of 774.03M, as in PreLayer's row"),
)

# --- tables 4, 5 and 15: GPT-3 175B --------------------------------------------------------------


def _table_4(printed: str, config: MethodConfig, setting: str, note: str = "") -> PublishedRow:
    names = {name: name for name in ("WikiSQL", "MNLI-m", "SAMSum R1")}
    scores = _scores(4, names, method=config.method, parameters=printed)
    return _row("Table 4", "gpt3-175b", printed, config, setting, scores, note=note)


_TABLE_4 = (
    _table_4(
        "175,255.8",
        FullConfig(),
        "",
        "L(12d² + 13d) + Vd + 2048d + 2d is 651.5M less with GPT-2's vocabulary of 50,257 and tied "
        "embeddings, 34.0M less with untied ones",
    ),
    _table_4(
        "14.2",
        BitFitConfig(),
        "",
        "a block has 9d biases in its matrices and 2d in its LayerNorms: 11Ld, and d in the last "
        "LayerNorm; 12Ld = 14.156M would fit",
    ),
    _table_4("3.2", PrefixEmbedConfig(256, 8), "l_p = 256, l_i = 8"),
    _table_4("20.2", PrefixLayerConfig(8, 8), "l_p = 8, l_i = 8", _NO_OFFSET),
    _table_4("7.1", BottleneckConfig("H", 1), "r = 1"),
    _table_4("40.1", BottleneckConfig("H", 8), "r = 8"),
    _table_4("4.7", _lora(1), "r_q = r_v = 1", "the scores are those of r_v = 2"),
    _table_4(
        "37.7",
        _lora(4, _ALL),
        "all four, r = 4",
        "a mixture: 74.0 is the run with all four at r = 4, 91.6 the one with r_q = r_v = 8",
    ),
)


def _table_5(targets: str, r: int) -> PublishedRow:
    weights = ", ".join(f"W{role}" for role in targets)
    scores = _scores(5, {"WikiSQL": "WikiSQL", "MultiNLI": "MNLI-m"}, weights=weights)
    setting = f"{weights}, r = {r}"
    return _row("Table 5", "gpt3-175b", "18", _lora(r, tuple(targets)), setting, scores)


_TABLE_5 = (
    _table_5("q", 8),
    _table_5("k", 8),
    _table_5("v", 8),
    _table_5("o", 8),
    _table_5("qk", 4),
    _table_5("qv", 4),
    _table_5("qkvo", 2),
)


def _table_15(
    printed: str,
    configs: MethodConfig | tuple[MethodConfig, ...],
    setting: str,
    **more: Any,
) -> PublishedRow:
    method = more.get("method", configs.method if isinstance(configs, MethodConfig) else "")
    names = {name: name for name in ("WikiSQL", "MNLI-m")}
    scores = _scores(15, names, method=method, setting=setting)
    return _row("Table 15", "gpt3-175b", printed, configs, setting, scores, **more)


def _embed(printed: str, p: int, i: int) -> PublishedRow:
    return _table_15(printed, PrefixEmbedConfig(p, i), f"l_p = {p}, l_i = {i}")


def _layer(printed: str, p: int, i: int) -> PublishedRow:
    setting = f"l_p = {p}, l_i = {i}"
    return _table_15(printed, PrefixLayerConfig(p, i), setting, note=_NO_OFFSET)


def _adapter(printed: str, r: int) -> PublishedRow:
    return _table_15(printed, BottleneckConfig("H", r), f"r = {r}")


def _with_prefix(
    printed: str, r: int, prefix: MethodConfig, method: str, note: str = ""
) -> PublishedRow:
    setting = f"r_q = r_v = {r}, l_p = 8, l_i = 4"
    return _table_15(printed, (_lora(r), prefix), setting, method=method, note=note)


_PE, _PL = PrefixEmbedConfig(8, 4), PrefixLayerConfig(8, 4)
_TABLE_15 = (
    _embed("0.4", 32, 8),
    _embed("0.9", 64, 8),
    _embed("1.7", 128, 8),
    _embed("3.2", 256, 8),
    _embed("6.4", 512, 8),
    _layer("5.1", 2, 2),
    _layer("10.1", 8, 0),
    _layer("20.2", 8, 8),
    _layer("44.1", 32, 4),
    _layer("76.1", 64, 0),
    _adapter("7.1", 1),
    _adapter("21.2", 4),
    _adapter("40.1", 8),
    _adapter("77.9", 16),
    _adapter("304.4", 64),
    _table_15("4.7", _lora(2, ("v",)), "r_v = 2"),
    _table_15("4.7", _lora(1), "r_q = r_v = 1"),
    _table_15("9.4", _lora(2), "r_q = r_v = 2"),
    _table_15("9.4", _lora(1, _ALL), "all four, r = 1"),
    _table_15("18.8", _lora(4), "r_q = r_v = 4"),
    _table_15("18.8", _lora(2, _ALL), "all four, r = 2"),
    _table_15("37.7", _lora(8), "r_q = r_v = 8"),
    _table_15("37.7", _lora(4, _ALL), "all four, r = 4"),
    _table_15("301.9", _lora(64), "r_q = r_v = 64"),
    _table_15(
        "603.8",
        _lora(64, _ALL),
        "all four, r = 64",
        doubled=True,
        note="twice the truncated 301.9",
    ),
    _with_prefix("37.8", 8, _PE, "LoRA+PE"),
    _with_prefix("151.1", 32, _PE, "LoRA+PE"),
    _with_prefix("302.1", 64, _PE, "LoRA+PE"),
    _with_prefix("52.8", 8, _PL, "LoRA+PL", "0.9M more than the parts add up to"),
)

TABLES: tuple[PublishedRow, ...] = (*_TABLE_2, *_TABLE_3, *_TABLE_4, *_TABLE_5, *_TABLE_15)


# --- table 7: amplification ----------------------------------------------------------------------


@dataclass(frozen=True)
class AmplificationRow:
    """Table 7 at one rank: ‖UᵀW_qV‖_F for three choices of U and V, layer 48 of GPT-3 175B.

    Attributes:
        r: rank.
        along_delta, along_own, along_random: U and V of ΔW, of W_q itself, of a random matrix.
        delta_norm: ‖ΔW_q‖_F.
        weight_norm: ‖W_q‖_F.
        width: W_q is (width, width).
    """

    r: int
    along_delta: float
    along_own: float
    along_random: float
    delta_norm: float
    weight_norm: float = 61.95
    width: int = 12288

    @property
    def expected_random(self) -> float:
        """‖W‖_F·r/√(dk): what unrelated directions give, without drawing any."""
        return self.weight_norm * self.r / self.width


TABLE_7 = (
    AmplificationRow(4, 0.32, 21.67, 0.02, delta_norm=6.91),
    AmplificationRow(64, 1.90, 37.71, 0.33, delta_norm=3.57),
)
