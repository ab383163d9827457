"""New weights into a model that is in use: all of them or none."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn


@torch.no_grad()
def load_weights(model: nn.Module, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Copy `tensors`, named as in the model's state_dict, into its memory.

    Raises ValueError, with the model as it was, for a name that is unknown, missing or given twice,
    and for another shape. Buffers may be left out.
    """
    places = model.state_dict()
    given: dict[str, Tensor] = {}
    for name, tensor in tensors:
        if name not in places or name in given:
            kind = "twice" if name in given else "but is not of the model"
            raise ValueError(f"weight {name} was given {kind}; send every weight of the model once")
        if tensor.shape != places[name].shape:
            raise ValueError(
                f"weight {name} has shape {list(tensor.shape)} and the model's is "
                f"{list(places[name].shape)}; send weights of the same architecture"
            )
        given[name] = tensor
    missing = [name for name, _ in model.named_parameters() if name not in given]
    if missing:
        raise ValueError(
            f"{len(missing)} weights are missing, the first is {missing[0]}; send every weight of "
            "the model once"
        )
    for name, tensor in given.items():
        places[name].copy_(tensor)
