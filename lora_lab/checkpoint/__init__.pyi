from .card import model_card as model_card
from .card import push_ready as push_ready
from .factors import (
    AdapterFactors as AdapterFactors,
)
from .factors import (
    read_factors as read_factors,
)
from .files import CONFIG_FILE as CONFIG_FILE
from .files import WEIGHTS_FILE as WEIGHTS_FILE
from .loading import load_adapter as load_adapter
from .locate import AdapterPlace as AdapterPlace
from .locate import find_adapter as find_adapter
from .loralib_models import load_loralib as load_loralib
from .loralib_models import save_loralib as save_loralib
from .merged import export_merged as export_merged
from .saving import save_adapter as save_adapter
from .uniform import export_uniform as export_uniform
