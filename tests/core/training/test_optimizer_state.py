"""A checkpoint of a GPU on a CPU, and the other way round."""

import copy

import pytest
import torch

from tests.helpers.made_up_hardware import cpu_can
from tests.helpers.recorded_fit import Recorded
from tests.helpers.tiny_run import CONFIG

METHODS = {"lora": CONFIG, "dora": CONFIG.replace(use_dora=True)}


def record(tmp_path, config, fused, after=None):
    """Six steps, or the last three of them, after the fit and the state of the first three."""
    run = Recorded(tmp_path, config=config)
    run.states = []
    if after is not None:
        earlier, state = after
        run.adapter.restore(earlier)
        run.fit.resume_state, run.fit.completed_steps = copy.deepcopy(state), 3
    told = run.fit.on_step

    def on_step(step):
        run.states.append((run.adapter.snapshot(), copy.deepcopy(run.fit.state())))
        return told(step)

    run.fit.on_step = on_step
    with pytest.MonkeyPatch.context() as patch:
        cpu_can(patch, fused_optimizer=fused)
        return run.run()


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_run_steps_as_its_own_machine_does(tmp_path, method, before):
    config = METHODS[method]
    first = record(tmp_path, config, fused=before)
    resumed = record(tmp_path, config, fused=not before, after=first.states[2])
    (_, state) = resumed.states[-1]
    for group in state["optimizer"]["param_groups"]:
        assert bool(group["fused"]) is not before
        assert not group["foreach"]
    for moments in state["optimizer"]["state"].values():
        assert moments["step"].item() == 6
        assert moments["step"].dtype == torch.float32
    # One formula, whichever kernel computes it.
    torch.testing.assert_close(resumed.losses, first.losses[3:], rtol=1e-4, atol=1e-5)
