from .resume import resume as resume
from .run import Run as Run
from .run import RunResult as RunResult
from .run import train as train
