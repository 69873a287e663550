"""What figures and reports are made of, and the contrast of two colors."""

import math

import numpy as np

from lora_lab.analysis import SiteView
from lora_lab.budget import Budget, Memory

GIB = 1 << 30


def view(r=8, directions=24, seed=0, zero=False, site="layers.3.v"):
    rng = np.random.default_rng(seed)
    s = np.sort(rng.random(r))[::-1].astype(np.float32) * (not zero)
    overlap = (rng.random((r, directions)) * 0.15).astype(np.float32)
    overlap[min(1, r - 1), min(4, directions - 1)] = 0.42
    if zero:
        overlap[:] = np.nan
    norm = float(np.linalg.norm(s))
    undefined = math.nan if zero else None
    return SiteView(
        site=site,
        step=12,
        shape=(192, 576),
        singular_values=s,
        effective_rank=0.0 if zero else 3.25,
        stable_rank=0.0 if zero else 2.0,
        frobenius_norm=norm,
        overlap=overlap,
        random_overlap=1 / 192,
        amplification=undefined or 18.4,
        random_amplification=undefined or 20.1,
    )


def budget():
    return Budget(
        parameters_total=134_515_008,
        parameters_trainable=921_600,
        checkpoint_bytes=3_686_400,
        full_checkpoint_bytes=538_060_032,
        full=Memory(GIB // 2, GIB // 2, GIB, GIB // 2),
        adapted=Memory(GIB // 2, GIB // 256, GIB // 128, GIB // 2),
        approximate=False,
        settings="batch 8 × 128 tokens, AdamW, float32",
    )


def losses(count):
    return [(step, 1.3 + 2 * math.exp(-step / 30)) for step in range(1, count + 1)]


def luminance(color):
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a, b):
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)
