"""The captions of figures, under the names that they have beside them."""

from lora_lab.captions.comparisons import pareto_summary as pareto_summary
from lora_lab.captions.comparisons import rate_curves_summary as rate_curves_summary
from lora_lab.captions.delta_w import amplification_summary as amplification_summary
from lora_lab.captions.delta_w import capacity_summary as capacity_summary
from lora_lab.captions.delta_w import intruder_curve_summary as intruder_curve_summary
from lora_lab.captions.delta_w import intruder_summary as intruder_summary
from lora_lab.captions.delta_w import phi_summary as phi_summary
from lora_lab.captions.delta_w import spectrum_against_base_summary as spectrum_against_base_summary
from lora_lab.captions.delta_w import step_maps_summary as step_maps_summary
from lora_lab.captions.delta_w import sweep_summary as sweep_summary
from lora_lab.captions.methods import method_comparison_summary as method_comparison_summary
from lora_lab.captions.run import lengths_summary as lengths_summary
from lora_lab.captions.run import loss_summary as loss_summary
from lora_lab.captions.run import map_summary as map_summary
from lora_lab.captions.run import memory_summary as memory_summary
from lora_lab.captions.run import summary as summary
