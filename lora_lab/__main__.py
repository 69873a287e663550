"""`python -m lora_lab`, for `torchrun -m lora_lab train run.yaml`."""

import sys

from lora_lab.cli.main import main

sys.exit(main())
