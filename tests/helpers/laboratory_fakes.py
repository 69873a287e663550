"""Invented results of every analysis, as large as a small model's: 30 layers × 7 roles."""

from __future__ import annotations

import math

import numpy as np

from lora_lab.analysis.amplify import SiteAmplification
from lora_lab.analysis.capacity import Capacity
from lora_lab.analysis.intruders import IntruderCurve, SiteIntruders
from lora_lab.analysis.methods import MethodComparison, MethodRow
from lora_lab.analysis.overlaps import OverlapMap
from lora_lab.analysis.spectrum import SpectrumView
from lora_lab.analysis.steps import StepMaps
from lora_lab.analysis.sweep import SweepMap

ROLES = ("q", "k", "v", "o", "gate", "up", "down")


def spectrum_view(zero=False):
    weight = np.concatenate([[20, 14, 11.5], 9 * np.exp(-np.arange(61) / 30)])
    delta = np.array([2.0, 0.9, 0.4, 0.1]) * (not zero)
    return SpectrumView(
        "layers.3.q", 400, delta.astype(np.float32), weight.astype(np.float32), 62.0, 4.9
    )


def overlap_map(rows=8, columns=64, n=576, zero=False):
    """φ of an update with another one that shares its first two directions."""
    rng = np.random.default_rng(0)
    A = np.linalg.qr(rng.normal(size=(n, rows)))[0]
    B = rng.normal(size=(n, columns))
    B[:, :2] = A[:, :2]
    B = np.linalg.qr(B)[0]
    i, j = np.arange(1, rows + 1)[:, None], np.arange(1, columns + 1)
    values = np.square(A.T @ B).cumsum(0).cumsum(1) / np.minimum(i, j)
    values[:] = np.nan if zero else values
    variance = 2 * i * j * (n - i) * (n - j) / (n**2 * (n - 1) * (n + 2))
    return OverlapMap(
        site="layers.3.q",
        first="r=8",
        second="r=64",
        side="input",
        values=values.astype(np.float32),
        random=np.maximum(i, j) / n,
        spread=np.sqrt(variance) / np.minimum(i, j),
        n=n,
    )


def amplification(layer, role, r=8, stack="", along_delta=1.5, name=None):
    return SiteAmplification(
        name=name or f"layers.{layer}.{role}",
        layer=layer,
        role=role,
        stack=stack,
        r=r,
        delta_norm=3.0 * bool(r),
        weight_norm=62.0,
        along_delta=along_delta * bool(r),
        along_own=20.0 * bool(r),
        along_random=0.51 * bool(r),
        random_spread=0.02 * bool(r),
        random_level=0.5 * bool(r),
    )


def amplifications(layers=30, roles=ROLES):
    return [
        amplification(layer, role, along_delta=1 + 0.1 * layer)
        for layer in range(layers)
        for role in roles
    ]


def step_maps(steps=200, layers=30, roles=ROLES):
    """Maps that grow with the steps from zero; the second role's first five layers are empty."""
    growth = np.linspace(0, 1, steps)[:, None, None]
    place = 1 + np.arange(len(roles) * layers).reshape(len(roles), layers) / (len(roles) * layers)
    ranks = np.where(growth > 0, 1 + 3 * growth * place, 0)
    sizes = 0.01 * growth * place
    ranks[:, 1, :5] = sizes[:, 1, :5] = np.nan
    return StepMaps(
        roles=tuple(roles),
        layers=tuple(map(str, range(layers))),
        steps=(10 * np.arange(steps)).astype(np.int32),
        effective_ranks=ranks.astype(np.float32),
        relative_sizes=sizes.astype(np.float32),
        ranks=np.where(np.isnan(sizes[0]), 0, 8).astype(np.int32),
    )


def site_intruders(layer=0, role="q", similarity=(0.99, 0.3, 0.9), n=576, name=None):
    similar = np.array(similarity, np.float32)
    intruder = similar < 0.5
    c = int(intruder.sum())
    return SiteIntruders(
        name=name or f"layers.{layer}.{role}",
        layer=layer,
        role=role,
        stack="",
        n=n,
        singular_values=np.linspace(12, 4, len(similar), dtype=np.float32),
        similarity=similar,
        window_similarity=np.minimum(1, similar + 0.05),
        random_line=math.sqrt(2 * math.log(n) / n),
        epsilon=0.5,
        intruder=intruder,
        U=np.zeros((n, c), np.float32),
        s=np.zeros(c, np.float32),
        Vt=np.zeros((c, n), np.float32),
    )


def intruders(layers=30, roles=ROLES):
    known = np.linspace(0.7, 1, 10)
    return [
        site_intruders(layer, role, known if layer % 3 else [*known[1:], 0.2])
        for layer in range(layers)
        for role in roles
    ]


def intruder_curve(count=17):
    return IntruderCurve(
        factors=np.array([1, 0.5, 0]),
        task_losses=np.array([1.3, 1.5, 1.9]),
        base_losses=np.array([2.6, 2.4, 2.3]),
        count=count,
        note="Task: 32 examples.",
        base_reference=2.25,
    )


def sweep_map(metric="loss_after"):
    """Four ranks × five learning rates; the largest rate diverges, one cell has no run."""
    values = np.array(
        [
            [1.52, 1.41, 1.36, 1.44, 3.9],
            [1.47, 1.38, 1.33, 1.40, 6.2],
            [1.45, 1.36, 1.31, 1.39, np.nan],
            [1.44, 1.35, 1.32, 1.47, 9.7],
        ],
        np.float32,
    )
    return SweepMap(
        metric=metric,
        ranks=(1, 4, 8, 64),
        learning_rates=(1e-4, 3e-4, 1e-3, 3e-3, 1e-2),
        values=values,
        counts=np.isfinite(values) * np.int32(2),
        best=(8, 1e-3),
        note="",
    )


def capacity(data_bits=159_360.0):
    known = data_bits is not None
    return Capacity(
        parameters=921_600,
        bits=1_843_200.0,
        data_bits=data_bits,
        tokens=49_800 if known else None,
        used=data_bits / 1_843_200 if known else None,
    )


def method_rows():
    """Every method of the paper and AdaLoRA, (name, parameters, loss), as on a small model."""
    return [
        ("PreEmbed", 9_216, 2.05),
        ("BitFit", 103_680, 1.62),
        ("PreLayer", 276_480, 1.71),
        ("Adapter^P", 293_760, 1.45),
        ("Adapter^D", 293_760, 1.46),
        ("Adapter^L", 328_320, 1.44),
        ("LoRA", 460_800, 1.38),
        ("AdaLoRA", 460_800, 1.40),
        ("LoRA+PE", 467_712, 1.39),
        ("Adapter^H", 587_520, 1.42),
        ("LoRA+PL", 668_160, 1.41),
        ("FT-Top2", 7_080_192, 1.36),
        ("FT", 134_515_008, 1.31),
    ]


def method_comparison(rows=None, seeds=3, base=2.7, metric="loss_after", note=""):
    """Rows whose runs differ by 0.02 from seed to seed."""
    return MethodComparison(
        metric=metric,
        model="smollm2-135m",
        task="mini-e2e",
        steps=60,
        rows=tuple(
            MethodRow(
                method=method,
                setting="r = 8, q v" if "LoRA" in method else "",
                learning_rate=2e-3,
                trainable=trainable,
                values=tuple(value + 0.02 * seed for seed in range(seeds)),
                seconds=61.5,
                peak_memory=2 << 30,
                checkpoint_bytes=4 * trainable,
            )
            for method, trainable, value in (method_rows() if rows is None else rows)
        ),
        base=base,
        note=note,
    )
