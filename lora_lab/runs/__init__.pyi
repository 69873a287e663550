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
from .run_file import RunConfig as RunConfig
from .samples import Sample as Sample
from .training_config import TrainingConfig as TrainingConfig
