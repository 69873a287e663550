from .main import COMMANDS as COMMANDS
from .main import main as main
