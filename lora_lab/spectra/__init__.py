"""The update ΔW = s·BA looked at without building it: spectra, ranks, overlap, amplification.

Pure array mathematics over the array API: NumPy in gives NumPy out, torch in gives torch out on the
same device; torch itself is never imported here. Everything is computed in float32 or better (half
types are promoted), nothing is recorded for autograd, and leading dimensions are batches.

The shapes are the paper's: A is (r, in), B is (out, r), W₀ and ΔW are (out, in). Singular vectors
come as U (out, m), s (m,) descending, Vt (m, in), with m = min(r, out, in).

Source: Hu et al., LoRA (ICLR 2022), sections 7.2 and 7.3 and appendix G; later work is named where
it is used.
"""

from lora_lab.spectra._arrays import Array
from lora_lab.spectra._norm import matrix_norm
from lora_lab.spectra.amplification import (
    amplification,
    projected_norm,
    random_amplification,
    random_projection,
    sampled_random_projection,
)
from lora_lab.spectra.capacity import capacity_bits, capacity_used, first_epoch_bits
from lora_lab.spectra.directions import top_directions, top_directions_of_update
from lora_lab.spectra.intruders import best_match, intruder_line, window_match
from lora_lab.spectra.lowrank import (
    singular_triplets,
    singular_triplets_of_sum,
    singular_values,
    singular_values_from_triangles,
    triangle,
)
from lora_lab.spectra.noise import marchenko_pastur_edge
from lora_lab.spectra.sizes import (
    effective_rank,
    frobenius,
    nuclear_norm,
    numerical_rank,
    participation_ratio,
    rank_at_energy,
    spectral_norm,
    stable_rank,
)
from lora_lab.spectra.subspaces import (
    direction_overlap,
    excess_overlap,
    principal_angles,
    projection_metric,
    random_direction_overlap,
    random_subspace_overlap,
    random_subspace_spread,
    subspace_overlap,
)
from lora_lab.spectra.update import LowRankUpdate, SiteUpdate

__all__ = [
    "Array",
    "LowRankUpdate",
    "SiteUpdate",
    "amplification",
    "best_match",
    "capacity_bits",
    "capacity_used",
    "direction_overlap",
    "effective_rank",
    "excess_overlap",
    "first_epoch_bits",
    "frobenius",
    "intruder_line",
    "marchenko_pastur_edge",
    "matrix_norm",
    "nuclear_norm",
    "numerical_rank",
    "participation_ratio",
    "principal_angles",
    "projected_norm",
    "projection_metric",
    "random_amplification",
    "random_direction_overlap",
    "random_projection",
    "random_subspace_overlap",
    "random_subspace_spread",
    "rank_at_energy",
    "sampled_random_projection",
    "singular_triplets",
    "singular_triplets_of_sum",
    "singular_values",
    "singular_values_from_triangles",
    "spectral_norm",
    "stable_rank",
    "subspace_overlap",
    "top_directions",
    "top_directions_of_update",
    "triangle",
    "window_match",
]
