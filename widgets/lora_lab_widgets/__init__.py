"""The notebook layer of LoRA Lab: the workbench and its panels."""

from lora_lab_widgets.delta_w import DeltaW
from lora_lab_widgets.rank_grid import RankGrid
from lora_lab_widgets.run_panel import RunPanel
from lora_lab_widgets.savings import Savings
from lora_lab_widgets.site_map import SiteMap
from lora_lab_widgets.try_it import TryIt
from lora_lab_widgets.workbench import Workbench

__all__ = ["DeltaW", "RankGrid", "RunPanel", "Savings", "SiteMap", "TryIt", "Workbench"]
