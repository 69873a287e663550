import pytest

from lora_lab._util.format import (
    format_bytes,
    format_change,
    format_count,
    format_ratio,
    format_share,
    plural,
)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1152, "1.13 KiB"),  # 1.125: halves go up, as in JavaScript
        (24_576, "24 KiB"),
        (1024**2 - 1, "1 MiB"),  # never "1024 KiB"
        (1_116_691_497, "1.04 GiB"),
        (99.96 * 1024, "100 KiB"),
        (350.5e9, "326 GiB"),
        (-2048, "−2 KiB"),
        (3 * 1024**6, "3072 PiB"),
    ],
)
def test_bytes_have_three_digits_and_a_binary_unit(value: float, text: str) -> None:
    assert format_bytes(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (99_999, "99,999"),
        (460_800, "0.46 M"),
        (9_996_000, "10.0 M"),
        (134_515_008, "134.5 M"),
        (999_960_000, "1.00 B"),
        (174_604_259_328, "174.6 B"),
    ],
)
def test_counts_read_in_millions(value: int, text: str) -> None:
    assert format_count(value) == text


def test_share_ratio_and_change() -> None:
    assert format_share(921_600, 134_515_008) == "0.69 %"
    assert format_share(18_874_368, 174_604_259_328) == "0.011 %"  # the paper's 0.0108 %
    assert format_share(1, 0) == "0.00 %"
    assert format_ratio(349_208_518_656, 37_748_736) == "9,251×"
    assert format_ratio(3, 2) == "1.5×"
    assert format_ratio(3, 0) == "–"
    assert format_change(39, 100) == "−61 %"
    assert format_change(110, 100) == "+10 %"
    assert format_change(100, 100) == "0 %"


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 runs"), (1, "1 run"), (2, "2 runs"), (1200, "1,200 runs")]
)
def test_a_noun_follows_its_count(count: int, text: str) -> None:
    assert plural(count, "run") == text
