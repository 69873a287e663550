from .api import train as train
from .outcome import RunResult as RunResult
from .resume import resume as resume
from .run import Run as Run
from .snapshot import Failure as Failure
from .snapshot import RunState as RunState
from .snapshot import Snapshot as Snapshot
from .snapshot import Spectra as Spectra
