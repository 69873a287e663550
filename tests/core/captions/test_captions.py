import dataclasses

import numpy as np

from lora_lab import captions as say
from lora_lab import figures
from tests.helpers import laboratory_fakes as fakes


def test_every_summary_is_importable_beside_its_figure():
    for name in say.__all__:
        assert getattr(figures, name) is getattr(say, name)


def test_spectrum_against_base():
    text = say.spectrum_against_base_summary(fakes.spectrum_view())
    # ‖ΔW‖ = √(4 + 0.81 + 0.16 + 0.01) = 2.232; 9·e^(−n/30) > 4.9 for n ≤ 18: 3 + 19 values.
    assert "largest singular value 2.00 is 10.0 % of W₀'s, 20.0" in text
    assert "‖ΔW‖ is 3.60 % of ‖W₀‖" in text
    assert "22 of the 64 strongest directions of W₀ stand above the edge of noise, 4.90" in text
    assert text.endswith("of ΔW's 4, none.")
    zero = say.spectrum_against_base_summary(fakes.spectrum_view(zero=True))
    assert "ΔW is zero" in zero


def test_phi():
    overlap = fakes.overlap_map()
    text = say.phi_summary(overlap)
    assert text.startswith("layers.3.q, r=8 against r=64, input directions: ")
    assert "φ(1, 1) = 1.00" in text
    assert "(unrelated: 0.111)" in text
    assert "ΔW is zero" in say.phi_summary(fakes.overlap_map(zero=True))


def test_phi_counts_what_chance_does_not_explain():
    overlap = fakes.overlap_map()
    at_chance = dataclasses.replace(overlap, values=overlap.random.astype(np.float32))
    assert "0.00 % of the map" in say.phi_summary(at_chance)


def test_amplification():
    rows = [
        fakes.amplification(0, "q", along_delta=1.5),
        fakes.amplification(1, "q", along_delta=0.5),
        fakes.amplification(2, "q", r=0),
    ]
    text = say.amplification_summary(rows)
    assert "2 matrices: ΔW amplifies its directions 2.00 to 6.00 times, median 4.00" in text
    assert "most at layers.1.q (‖ΔW‖ 3.00, W₀ there 0.500)" in text
    # 1.5/0.5 = 3 and 0.5/0.5 = 1 times random; 7.5 % and 2.5 % of its own.
    assert "2.00 times what random directions would have, and 5.00 % of" in text
    assert text.endswith("At 1 matrix ΔW is zero.")
    assert "its directions 2.00 times; most at layers.0.q" in say.amplification_summary(rows[:1])
    assert "zero at every matrix" in say.amplification_summary(rows[2:])


def test_step_maps():
    maps = fakes.step_maps()
    assert "nothing is learned yet" in say.step_maps_summary(maps, 0)
    text = say.step_maps_summary(maps, 199)
    # The last cell of 210: 0.01·(1 + 209/210); the first: 0.01.
    assert text.startswith("Step 1,990 of 1,990: effective ranks 4.00 to 6.99")
    assert "1.00 % to 2.00 % of ‖W₀‖, most at layer 29, down." in text


def test_intruders():
    text = say.intruder_summary(
        [fakes.site_intruders(0), fakes.site_intruders(1, similarity=(0.9, 0.8))]
    )
    assert "1 of the 5 strongest directions of W₀ + ΔW at 2 matrices are intruders" in text
    assert "at 1 matrix, up to 1 at one (layers.0.q)" in text
    none = say.intruder_summary([fakes.site_intruders(0, similarity=(0.9, 0.72))])
    assert none.startswith("No intruder among the 2 ")
    assert "lowest is 0.72, at layers.0.q" in none
    # √(2 ln 16 / 16) = 0.59: above ε.
    small = say.intruder_summary([fakes.site_intruders(0, n=16)])
    assert "a random vector comes near ε itself (√(2 ln n/n) up to 0.59)" in small
    assert say.intruder_summary([]) == "No matrix has an adapter."


def test_intruder_curve():
    text = say.intruder_curve_summary(fakes.intruder_curve())
    assert "17 intruders scaled from λ = 1 to 0" in text
    assert "from 1.300 to 1.900 nats per token (+0.600)" in text
    assert "from 2.600 to 2.300 (−0.300); the base model itself has 2.250. Task: 32" in text
    assert "no intruder" in say.intruder_curve_summary(fakes.intruder_curve(0))


def test_sweep():
    text = say.sweep_summary(fakes.sweep_map())
    assert text == (
        "Held-out loss of 38 runs in 19 of 20 cells: 1.31 to 9.70 nats per token; "
        "best 1.31 at r = 8, learning rate 1e-3."
    )
    values, counts = np.full((4, 5), np.nan), np.zeros((4, 5), int)
    row, column = fakes.sweep_map().ranks.index(8), fakes.sweep_map().learning_rates.index(1e-3)
    values[row, column], counts[row, column] = 1.31, 2
    single = dataclasses.replace(fakes.sweep_map(), values=values, counts=counts)
    assert say.sweep_summary(single) == (
        "Held-out loss of 2 runs at r = 8, learning rate 1e-3: 1.31 nats per token."
    )
    empty = dataclasses.replace(fakes.sweep_map(), values=np.full((4, 5), np.nan), note="Why.")
    assert say.sweep_summary(empty) == "No run has ended with held-out loss. Why."


def test_capacity():
    text = say.capacity_summary(fakes.capacity())
    assert text == (
        "0.92 M trainable parameters can hold about 1.84 Mbit (2 bits each); the 49,800 "
        "completion tokens hold 159 kbit, 8.65 % of that: it has room."
    )
    assert "more than the adapter can hold" in say.capacity_summary(fakes.capacity(4e6))
    assert "not known" in say.capacity_summary(fakes.capacity(None))
