"""`lora-lab`: the command line. One subcommand a file, one entry each in `COMMANDS`."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
