"""Initial weights that depend on nothing but (seed, parameter name, position).

Guarantees, each asserted in tests/trainer/model/test_init.py:
- any layout starts from bitwise the same weights as one rank;
- a rank generates only the chunks that its rows overlap;
- tensors of different names are independent.
"""

import hashlib
import math

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from trainer.model.decoder import Decoder

_CHUNK_ELEMENTS = 2**18
"""Elements drawn from one generator: small enough that a shard wastes little at its ends."""

_RESIDUAL_OUTPUTS = ("o_proj", "down_proj")


@torch.no_grad()
def init_weights(model: Decoder, seed: int) -> None:
    """Fill every parameter and buffer. Plain tensors and DTensors of any placement; no rank talks
    to another.

    Matrices are normal with `init_std`, those that write to the residual stream divided by
    sqrt(2 layers) (GPT-2), norms are one, biases and buffers zero.
    """
    architecture = model.architecture
    residual_std = architecture.init_std / math.sqrt(2 * architecture.num_layers)
    for name, parameter in model.named_parameters():
        local, first, shape = _local_part(parameter)
        if parameter.ndim == 1:
            local.fill_(0.0 if name.endswith("bias") else 1.0)
            continue
        residual = any(f".{output}" in name for output in _RESIDUAL_OUTPUTS)
        std = residual_std if residual else architecture.init_std
        _fill_normal(local, name=name, seed=seed, first=first, shape=shape, std=std)
    for buffer in model.buffers():
        buffer.zero_()


def normal_rows(
    name: str, *, seed: int, shape: torch.Size, first_row: int, end_row: int
) -> Tensor:
    """Rows [first_row, end_row) of the tensor `name` of standard normal numbers, fp32 on CPU."""
    row_elements = max(1, math.prod(shape[1:]))
    chunk_rows = max(1, _CHUNK_ELEMENTS // row_elements)
    pieces = []
    for chunk in range(first_row // chunk_rows, -(-end_row // chunk_rows)):
        begin, end = chunk * chunk_rows, min((chunk + 1) * chunk_rows, shape[0])
        digest = hashlib.sha256(f"{seed}/{name}/{chunk}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        rows = torch.randn(end - begin, *shape[1:], generator=generator)
        pieces.append(rows[max(first_row - begin, 0) : end_row - begin])
    return torch.cat(pieces) if pieces else torch.empty(0, *shape[1:])


def _fill_normal(
    local: Tensor, *, name: str, seed: int, first: tuple[int, ...], shape: torch.Size, std: float
) -> None:
    rows = normal_rows(
        name, seed=seed, shape=shape, first_row=first[0], end_row=first[0] + local.shape[0]
    )
    for dim in range(1, local.ndim):
        rows = rows.narrow(dim, first[dim], local.shape[dim])
    local.copy_(rows * std)


def _local_part(parameter: Tensor) -> tuple[Tensor, tuple[int, ...], torch.Size]:
    """This rank's part, where it begins, and the shape of the whole."""
    if not isinstance(parameter, DTensor):
        return parameter, (0,) * parameter.ndim, parameter.shape
    _, first = compute_local_shape_and_global_offset(
        parameter.shape, parameter.device_mesh, parameter.placements
    )
    return parameter.to_local(), tuple(first), parameter.shape
