"""The rows of Hu et al. (2022), tables 2 to 5 and 15, that print a number of parameters.

Scores are those of the printed row. What does not come out stays as printed, with a note.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lora_lab.methods.bottleneck.config import BottleneckConfig
from lora_lab.methods.config import MethodConfig
from lora_lab.methods.full.config import BitFitConfig, FullConfig
from lora_lab.methods.lora.config import LoraConfig
from lora_lab.methods.prompt_tuning.config import PrefixEmbedConfig, PrefixLayerConfig
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


# --- table 2: GLUE -------------------------------------------------------------------------------


def _glue(
    model: str, printed: str, config: MethodConfig, score: float, **more: Any
) -> PublishedRow:
    setting = f"r = {config.r}" if isinstance(config, (LoraConfig, BottleneckConfig)) else ""
    return _row("Table 2", model, printed, config, setting, {"GLUE average": score}, **more)


_ROUNDED = "printed as {}.0M; encoder and pooler, rounded to a million"
_TABLE_2 = (
    _glue(
        "roberta-base",
        "125",
        FullConfig(),
        86.4,
        architecture="RobertaModel",
        note=_ROUNDED.format(125),
    ),
    _glue("roberta-base", "0.1", BitFitConfig(), 85.2),
    _glue("roberta-base", "0.3", BottleneckConfig("D", 16), 84.4),
    _glue("roberta-base", "0.9", BottleneckConfig("D", 48), 85.4),
    _glue("roberta-base", "0.3", _lora(8), 87.2),
    _glue(
        "roberta-large",
        "355",
        FullConfig(),
        88.9,
        architecture="RobertaModel",
        note=_ROUNDED.format(355),
    ),
    _glue("roberta-large", "0.8", _lora(8), 89.0),
    _glue("roberta-large", "3.0", BottleneckConfig("P", 64), 88.4, note=_BINARY),
    _glue("roberta-large", "0.8", BottleneckConfig("P", 16), 87.9),
    _glue("roberta-large", "6.0", BottleneckConfig("H", 64), 87.8, note=_BINARY),
    _glue("roberta-large", "0.8", BottleneckConfig("H", 8), 86.4),
    _glue(
        "deberta-v2-xxlarge",
        "4.7",
        _lora(16),
        91.3,
        note="r = 16 as in the authors' scripts; appendix D prints r = 8, which is 2.4M",
    ),
)

# --- table 3: E2E with GPT-2 ---------------------------------------------------------------------


def _e2e(size: str, printed: str, config: MethodConfig, bleu: float, **more: Any) -> PublishedRow:
    setting = f"r = {config.r}" if isinstance(config, (LoraConfig, BottleneckConfig)) else ""
    return _row("Table 3", f"gpt2-{size}", printed, config, setting, {"BLEU": bleu}, **more)


_TABLE_3 = (
    _e2e("medium", "354.92", FullConfig(), 68.2, note="0.10M more than GPT-2 medium has"),
    _e2e("medium", "0.37", BottleneckConfig("L", 6), 66.3),
    _e2e("medium", "11.09", BottleneckConfig("L", 224), 68.9),
    _e2e(
        "medium", "11.09", BottleneckConfig("H", 112), 67.3, note="no whole r gives it; 112 is next"
    ),
    _e2e("medium", "25.19", FullConfig(top_layers=2), 68.1, note="24M in tables 13 and 14"),
    _e2e("medium", "0.35", _lora(4), 70.4, note="0.35M is 0.1 % of 354.92M, as in PreLayer's row"),
    _e2e("large", "774.03", FullConfig(), 68.5),
    _e2e("large", "0.88", BottleneckConfig("L", 8), 69.1),
    _e2e("large", "23.00", BottleneckConfig("L", 248), 68.9),
    _e2e("large", "0.77", _lora(4), 70.4, note="0.77M is 0.1 % of 774.03M, as in PreLayer's row"),
)

# --- tables 4, 5 and 15: GPT-3 175B --------------------------------------------------------------


def _table_4(
    printed: str,
    config: MethodConfig,
    setting: str,
    sql: float,
    mnli: float,
    r1: float,
    note: str = "",
) -> PublishedRow:
    scores = {"WikiSQL": sql, "MNLI-m": mnli, "SAMSum R1": r1}
    return _row("Table 4", "gpt3-175b", printed, config, setting, scores, note=note)


_TABLE_4 = (
    _table_4(
        "175,255.8",
        FullConfig(),
        "",
        73.8,
        89.5,
        52.0,
        "L(12d² + 13d) + Vd + 2048d + 2d is 651.5M less with GPT-2's vocabulary of 50,257 and tied "
        "embeddings, 34.0M less with untied ones",
    ),
    _table_4(
        "14.2",
        BitFitConfig(),
        "",
        71.3,
        91.0,
        51.3,
        "a block has 9d biases in its matrices and 2d in its LayerNorms: 11Ld, and d in the last "
        "LayerNorm; 12Ld = 14.156M would fit",
    ),
    _table_4("3.2", PrefixEmbedConfig(256, 8), "l_p = 256, l_i = 8", 63.1, 88.6, 48.3),
    _table_4("20.2", PrefixLayerConfig(8, 8), "l_p = 8, l_i = 8", 70.1, 89.5, 50.8, _NO_OFFSET),
    _table_4("7.1", BottleneckConfig("H", 1), "r = 1", 71.9, 89.8, 53.0),
    _table_4("40.1", BottleneckConfig("H", 8), "r = 8", 73.2, 91.5, 53.2),
    _table_4("4.7", _lora(1), "r_q = r_v = 1", 73.4, 91.7, 53.8, "the scores are those of r_v = 2"),
    _table_4(
        "37.7",
        _lora(4, _ALL),
        "all four, r = 4",
        74.0,
        91.6,
        53.4,
        "a mixture: 74.0 is the run with all four at r = 4, 91.6 the one with r_q = r_v = 8",
    ),
)


def _table_5(targets: str, r: int, sql: float, mnli: float) -> PublishedRow:
    scores = {"WikiSQL": sql, "MNLI-m": mnli}
    setting = f"{', '.join(f'W{role}' for role in targets)}, r = {r}"
    return _row("Table 5", "gpt3-175b", "18", _lora(r, tuple(targets)), setting, scores)


_TABLE_5 = (
    _table_5("q", 8, 70.4, 91.0),
    _table_5("k", 8, 70.0, 90.8),
    _table_5("v", 8, 73.0, 91.0),
    _table_5("o", 8, 73.2, 91.3),
    _table_5("qk", 4, 71.4, 91.3),
    _table_5("qv", 4, 73.7, 91.3),
    _table_5("qkvo", 2, 73.7, 91.7),
)


def _table_15(
    printed: str,
    configs: MethodConfig | tuple[MethodConfig, ...],
    setting: str,
    sql: float,
    mnli: float,
    **more: Any,
) -> PublishedRow:
    scores = {"WikiSQL": sql, "MNLI-m": mnli}
    return _row("Table 15", "gpt3-175b", printed, configs, setting, scores, **more)


def _embed(printed: str, p: int, i: int, sql: float, mnli: float) -> PublishedRow:
    return _table_15(printed, PrefixEmbedConfig(p, i), f"l_p = {p}, l_i = {i}", sql, mnli)


def _layer(printed: str, p: int, i: int, sql: float, mnli: float) -> PublishedRow:
    setting = f"l_p = {p}, l_i = {i}"
    return _table_15(printed, PrefixLayerConfig(p, i), setting, sql, mnli, note=_NO_OFFSET)


def _adapter(printed: str, r: int, sql: float, mnli: float) -> PublishedRow:
    return _table_15(printed, BottleneckConfig("H", r), f"r = {r}", sql, mnli)


def _with_prefix(
    printed: str, r: int, prefix: MethodConfig, method: str, sql: float, mnli: float, note: str = ""
) -> PublishedRow:
    setting = f"r_q = r_v = {r}, l_p = 8, l_i = 4"
    return _table_15(printed, (_lora(r), prefix), setting, sql, mnli, method=method, note=note)


_PE, _PL = PrefixEmbedConfig(8, 4), PrefixLayerConfig(8, 4)
_TABLE_15 = (
    _embed("0.4", 32, 8, 55.9, 84.9),
    _embed("0.9", 64, 8, 58.7, 88.1),
    _embed("1.7", 128, 8, 60.6, 88.0),
    _embed("3.2", 256, 8, 63.1, 88.6),
    _embed("6.4", 512, 8, 55.9, 85.8),
    _layer("5.1", 2, 2, 68.5, 89.2),
    _layer("10.1", 8, 0, 69.8, 88.2),
    _layer("20.2", 8, 8, 70.1, 89.5),
    _layer("44.1", 32, 4, 66.4, 89.6),
    _layer("76.1", 64, 0, 64.9, 87.9),
    _adapter("7.1", 1, 71.9, 89.8),
    _adapter("21.2", 4, 73.2, 91.0),
    _adapter("40.1", 8, 73.2, 91.5),
    _adapter("77.9", 16, 73.2, 91.5),
    _adapter("304.4", 64, 72.6, 91.5),
    _table_15("4.7", _lora(2, ("v",)), "r_v = 2", 73.4, 91.7),
    _table_15("4.7", _lora(1), "r_q = r_v = 1", 73.4, 91.3),
    _table_15("9.4", _lora(2), "r_q = r_v = 2", 73.3, 91.4),
    _table_15("9.4", _lora(1, _ALL), "all four, r = 1", 74.1, 91.2),
    _table_15("18.8", _lora(4), "r_q = r_v = 4", 73.7, 91.3),
    _table_15("18.8", _lora(2, _ALL), "all four, r = 2", 73.7, 91.7),
    _table_15("37.7", _lora(8), "r_q = r_v = 8", 73.8, 91.6),
    _table_15("37.7", _lora(4, _ALL), "all four, r = 4", 74.0, 91.7),
    _table_15("301.9", _lora(64), "r_q = r_v = 64", 73.6, 91.4),
    _table_15(
        "603.8",
        _lora(64, _ALL),
        "all four, r = 64",
        73.9,
        91.4,
        doubled=True,
        note="twice the truncated 301.9",
    ),
    _with_prefix("37.8", 8, _PE, "LoRA+PE", 75.0, 91.4),
    _with_prefix("151.1", 32, _PE, "LoRA+PE", 75.9, 91.1),
    _with_prefix("302.1", 64, _PE, "LoRA+PE", 76.2, 91.3),
    _with_prefix("52.8", 8, _PL, "LoRA+PL", 72.9, 90.2, "0.9M more than the parts add up to"),
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
