from .main import COMMANDS as COMMANDS
from .main import main as main
from .main import program as program
