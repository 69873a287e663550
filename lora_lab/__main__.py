"""`python -m lora_lab`, for `torchrun -m lora_lab train run.yaml`."""

from lora_lab.cli.main import program

program()
