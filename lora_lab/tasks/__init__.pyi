from .base import Example as Example
from .base import Task as Task
from .classification import ClassificationTask as ClassificationTask
from .classification import LabelledText as LabelledText
from .load import load_task as load_task
