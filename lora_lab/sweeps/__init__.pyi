from .api import sweep as sweep
from .asha import AshaConfig as AshaConfig
from .cells import Cell as Cell
from .cells import Space as Space
from .local import Sweep as Sweep
from .local import SweepSnapshot as SweepSnapshot
from .store import CellResult as CellResult
