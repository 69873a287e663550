from .comparisons import pareto_summary as pareto_summary
from .comparisons import rate_curves_summary as rate_curves_summary
from .delta_w import (
    amplification_summary as amplification_summary,
)
from .delta_w import (
    capacity_summary as capacity_summary,
)
from .delta_w import (
    intruder_curve_summary as intruder_curve_summary,
)
from .delta_w import (
    intruder_summary as intruder_summary,
)
from .delta_w import (
    phi_summary as phi_summary,
)
from .delta_w import (
    spectrum_against_base_summary as spectrum_against_base_summary,
)
from .delta_w import (
    step_maps_summary as step_maps_summary,
)
from .delta_w import (
    sweep_summary as sweep_summary,
)
from .methods import method_comparison_summary as method_comparison_summary
from .run import (
    lengths_summary as lengths_summary,
)
from .run import (
    loss_summary as loss_summary,
)
from .run import (
    map_summary as map_summary,
)
from .run import (
    memory_summary as memory_summary,
)
from .run import (
    summary as summary,
)
