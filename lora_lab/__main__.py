"""`python -m lora_lab`, for `accelerate launch -m lora_lab train run.yaml`."""

import sys

from lora_lab.cli.main import main

sys.exit(main())
