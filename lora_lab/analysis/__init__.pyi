from .amplify import SiteAmplification as SiteAmplification
from .amplify import amplifications as amplifications
from .capacity import Capacity as Capacity
from .capacity import capacity as capacity
from .capacity import run_capacity as run_capacity
from .intruders import (
    IntruderCurve as IntruderCurve,
)
from .intruders import (
    SiteIntruders as SiteIntruders,
)
from .intruders import (
    find_intruders as find_intruders,
)
from .intruders import (
    intruder_curve as intruder_curve,
)
from .intruders import (
    scaled_intruders as scaled_intruders,
)
from .live import (
    RankMap as RankMap,
)
from .live import (
    SiteView as SiteView,
)
from .live import (
    adapter_spectra as adapter_spectra,
)
from .live import (
    analyze as analyze,
)
from .live import (
    analyze_sites as analyze_sites,
)
from .live import (
    live_view as live_view,
)
from .live import (
    rank_map as rank_map,
)
from .live import (
    site_view as site_view,
)
from .methods import (
    MethodComparison as MethodComparison,
)
from .methods import (
    MethodRow as MethodRow,
)
from .methods import (
    compare_methods as compare_methods,
)
from .overlaps import (
    OverlapMap as OverlapMap,
)
from .overlaps import (
    compare as compare,
)
from .overlaps import (
    compare_with_base as compare_with_base,
)
from .sites import AdaptedSite as AdaptedSite
from .spectrum import SpectrumView as SpectrumView
from .spectrum import spectrum_view as spectrum_view
from .steps import StepMaps as StepMaps
from .steps import step_maps as step_maps
from .sweep import SweepMap as SweepMap
from .sweep import comparable_runs as comparable_runs
from .sweep import sweep_map as sweep_map
from .table import (
    DORA_NOTE as DORA_NOTE,
)
from .table import (
    HEADER as HEADER,
)
from .table import (
    Analysis as Analysis,
)
from .table import (
    SiteAnalysis as SiteAnalysis,
)
