"""First weights, the same whatever the layout.

Guarantees, each asserted in tests/trainer/model/test_init.py:
- an element depends only on the seed, its parameter's name and shape, and its place in the whole
  parameter, so 1, 2, 3 or 4 ranks start from bitwise the same weights;
- a rank draws only the chunks that overlap what it holds;
- what is written into residual streams has a standard deviation of init_std / sqrt(2 num_layers).
"""

import hashlib
import math

import torch
from torch import Tensor

from trainer.model.fill import Region, fill
from trainer.model.holder import HasDecoder

_CHUNK_ELEMENTS = 65_536


def init_weights(model: HasDecoder, seed: int) -> None:
    """Fill parameters and reset buffers, also after `to_empty`. All ranks of a sharded model call.

    Norms start at one, biases at zero, everything else from a normal distribution; experts are in
    their order.
    """
    std = model.architecture.init_std
    residual_std = std / math.sqrt(2 * model.architecture.num_layers)
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            torch.nn.init.ones_(parameter)
        elif name.endswith(".bias"):
            torch.nn.init.zeros_(parameter)
        else:
            writes_residual = any(part in name for part in ("o_proj", "down_proj", "ascend"))
            _fill_normal(parameter, name, seed, residual_std if writes_residual else std)
    for name, buffer in model.named_buffers():
        if name.endswith(".expert_slot"):
            buffer.copy_(torch.arange(buffer.numel()))
        else:
            torch.nn.init.zeros_(buffer)


def _fill_normal(parameter: Tensor, name: str, seed: int, std: float) -> None:
    shape = tuple(parameter.shape)

    def read(region: Region) -> Tensor:
        return normal_region(name, shape, region, seed).mul_(std)

    fill(parameter, read)


def normal_region(name: str, shape: tuple[int, ...], region: Region, seed: int) -> Tensor:
    """The box `region` of a standard normal fp32 tensor on the CPU, named `name`."""
    rows = region[0]
    rows_per_chunk = max(1, _CHUNK_ELEMENTS // math.prod(shape[1:]))
    parts = []
    for chunk in range(rows.start // rows_per_chunk, -(-rows.stop // rows_per_chunk)):
        first = chunk * rows_per_chunk
        size = min(rows_per_chunk, shape[0] - first)
        generator = torch.Generator().manual_seed(_stable_seed(seed, name, chunk))
        values = torch.randn(size, *shape[1:], generator=generator, dtype=torch.float32)
        mine = slice(max(rows.start - first, 0), min(rows.stop - first, size))
        parts.append(values[(mine, *region[1:])])
    return torch.cat(parts)


def _stable_seed(seed: int, name: str, chunk: int) -> int:
    digest = hashlib.sha256(f"{seed}/{name}/{chunk}".encode()).digest()
    return int.from_bytes(digest[:8], "little", signed=True)
