"""A decoder to sample with, and what it takes of a channel for weights."""

import torch

from comms.weights.blocks import Block
from comms.weights.plan import Part
from comms.weights.wire import DTYPE_NAMES
from trainer.model.config import Architecture
from trainer.model.decoder import Decoder


def compute_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Of weights and arithmetic, as `rollout.precision` says it."""
    if precision == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return torch.bfloat16 if precision == "bf16" else torch.float32


def empty_decoder(
    architecture: Architecture, *, dtype: torch.dtype, device: torch.device
) -> Decoder:
    """Without weights. Parameters are of `dtype`; what routers count with stays as it is."""
    with torch.device("meta"):
        model = Decoder(architecture)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model.to_empty(device=device).eval().requires_grad_(False)


def taken_parts(model: Decoder) -> dict[str, Part]:
    """Every weight and every saved buffer, whole."""
    return {
        name: Part(
            shape=tuple(tensor.shape),
            dtype=DTYPE_NAMES[tensor.dtype],
            blocks=(Block((0,) * tensor.ndim, tuple(tensor.shape)),),
        )
        for name, tensor in model.state_dict().items()
    }
