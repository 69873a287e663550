from .history import (
    RecordedSite as RecordedSite,
)
from .history import (
    SpectraHistory as SpectraHistory,
)
from .history import (
    read_history as read_history,
)
from .records import (
    OpenedRun as OpenedRun,
)
from .records import (
    RecordState as RecordState,
)
from .records import (
    RunRecord as RunRecord,
)
from .records import (
    list_runs as list_runs,
)
from .samples import Sample as Sample
from .snapshot import (
    Failure as Failure,
)
from .snapshot import (
    RunState as RunState,
)
from .snapshot import (
    Snapshot as Snapshot,
)
from .snapshot import (
    Spectra as Spectra,
)
