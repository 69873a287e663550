from .delta_w import DeltaW as DeltaW
from .rank_grid import RankGrid as RankGrid
from .run_panel import RunPanel as RunPanel
from .savings import Savings as Savings
from .site_map import SiteMap as SiteMap
from .try_it import TryIt as TryIt
from .workbench import Workbench as Workbench
