from .adapter_file import AdapterFile as AdapterFile
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
from .files import StoredTensor as StoredTensor
from .loading import load_adapter as load_adapter
from .locate import AdapterLocation as AdapterLocation
from .locate import locate_adapter as locate_adapter
from .loralib_models import load_loralib as load_loralib
from .loralib_models import save_loralib as save_loralib
from .merged import export_merged as export_merged
from .native import NativeFile as NativeFile
from .reader import read_adapter as read_adapter
from .saving import save_adapter as save_adapter
from .uniform import export_uniform as export_uniform
