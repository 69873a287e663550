"""Out of memory on a CPU, simulated; `tests/gpu/test_spent_memory_cuda.py` is the real one."""

from __future__ import annotations

import gc

import torch
from torch._subclasses.fake_tensor import FakeTensor

from lora_lab.budget.meter import storage_bytes
from lora_lab.training import device_memory
from tests.helpers.spent_memory import FITS, ordeal
from tests.helpers.tiny_run import tiny_lm, tiny_task


class Pretended:
    """A computer where more than FITS examples a pass are too many, once memory is taken."""

    slack = 0

    def __init__(self, model, monkeypatch):
        self.taken = 0
        self._model, self._patch = model, monkeypatch

    def allocated(self):
        gc.collect()
        live = [
            each for each in gc.get_objects() if type(each) in (torch.Tensor, torch.nn.Parameter)
        ]
        live += [p.grad for p in self._model.parameters() if p.grad is not None]
        return storage_bytes(live)

    def take_all_but(self, free):
        self._hog = torch.empty(2**20, dtype=torch.uint8)
        self.taken = self._hog.nbytes
        self._patch.setattr(device_memory, "available_memory", lambda: free)
        mlp = type(self._model.model.layers[0].mlp)
        forward = mlp.forward

        def spent(module, x):
            if module.training and x.shape[0] > FITS and not isinstance(x, FakeTensor):
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return forward(module, x)

        self._patch.setattr(mlp, "forward", spent)


def test_memory_is_freed_and_the_proposed_batch_fits(tmp_path, monkeypatch):
    lm = tiny_lm()
    ordeal(lm, tiny_task(), tmp_path, Pretended(lm.model, monkeypatch))
