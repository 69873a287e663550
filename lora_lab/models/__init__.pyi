from .load import (
    Card as Card,
)
from .load import (
    LoadedModel as LoadedModel,
)
from .load import (
    catalogue as catalogue,
)
from .load import (
    load_model as load_model,
)
from .load import (
    model_class as model_class,
)
from .load import (
    model_config as model_config,
)
