"""What a checkpoint holds.

Random numbers are drawn per step from (seed, step), and the data stream is a function of the same
two: seed and step are all the random and data state there is.
"""

import platform
from typing import Any

import torch
from torch import Tensor

from comms.config import RankEnvironment
from comms.groups import device_of
from trainer.assembly import Assembly
from trainer.errors import RecipeError
from trainer.model.holder import HasParameters
from trainer.optim import Optimizer


def tensors_of(model: HasParameters, optimizer: Optimizer) -> dict[str, Tensor]:
    """The tensors of a run by name: `model.…`, which are live, and `optim.<moment>.…`, which are
    copies where the optimizer keeps its states outside the device."""
    return {**_model_tensors(model), **optimizer.moments()}


def tensors_to_fill(model: HasParameters, optimizer: Optimizer) -> dict[str, Tensor]:
    """The same names and forms, to be filled; the optimizer is then told by `restored`."""
    return {**_model_tensors(model), **optimizer.moments_to_fill()}


def live_tensors(model: HasParameters, optimizer: Optimizer) -> dict[str, Tensor]:
    """Of `tensors_of`, those that the run computes with: they change in place, and no copy is made
    to look at them."""
    moments = optimizer.moments() if optimizer.placement == "device" else {}
    return {**_model_tensors(model), **moments}


def copied_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    """The rest of `tensors_of`: copies made by this call."""
    return {} if optimizer.placement == "device" else optimizer.moments()


def _model_tensors(model: HasParameters) -> dict[str, Tensor]:
    weights = {f"model.{name}": p.detach() for name, p in model.named_parameters()}
    saved = model.state_dict().keys()
    buffers = {f"model.{name}": b for name, b in model.named_buffers() if name in saved}
    return {**weights, **buffers}


def arithmetic_of(assembly: Assembly, environment: RankEnvironment) -> dict[str, Any]:
    """What decides the last bits of a loss, apart from the layout."""
    device = device_of(environment)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "torch": torch.__version__,
        "device": name,
        "capability": torch.backends.cpu.get_cpu_capability() if device.type == "cpu" else "",
        "threads": environment.threads,
        "dtype": str(assembly.dtype),
        "compiled": assembly.compiled,
    }


def require_same_data(stored: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuse to go on with other data or another batch: the cursor would point elsewhere.

    Raises RecipeError naming what differs.
    """
    changed = [
        f"{key}: {stored.get(key)!r} in the checkpoint, {now[key]!r} now"
        for key in now
        if stored.get(key) != now[key]
    ]
    if changed:
        raise RecipeError(
            "the checkpoint's position in the data does not fit this recipe ("
            + "; ".join(changed)
            + "). Restore these settings, or start a new run from exported weights "
            "(braid export, then model.path)."
        )
