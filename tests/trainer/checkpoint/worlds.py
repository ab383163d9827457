"""States spread over ranks in several ways."""

from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard


def whole_state(seed: int) -> dict[str, Tensor]:
    """Odd sizes, several types, scalars, a tensor without elements."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    return {
        "model.embed": normal(10, 3),
        "model.weight": normal(7, 5),
        "model.single_row": normal(1, 6),
        "model.bias": normal(3),
        "model.scale": normal(),
        "model.none": normal(0, 4),
        "optim.exp_avg.weight": normal(7, 5),
        "optim.half": normal(5, 2).bfloat16(),
        "optim.step": torch.tensor(seed),
        "rng": torch.randint(0, 255, (21,), generator=generator, dtype=torch.uint8),
        "flags": normal(9) > 0,
    }


def spread(state: dict[str, Tensor], layout: str, mesh: DeviceMesh | None) -> dict[str, Tensor]:
    """This rank's view of a copy of `state`.

    `plain` is replicated, `rows` and `columns` are sharded over the mesh, `hybrid` is sharded by
    rows over its second axis and replicated over its first. Scalars stay plain, counters too.
    """
    placements: dict[str, list[Placement]] = {
        "rows": [Shard(0)],
        "columns": [Shard(1)],
        "hybrid": [Replicate(), Shard(0)],
    }
    out = {}
    for name, tensor in state.items():
        wanted = placements.get(layout)
        if layout == "columns" and tensor.dim() < 2:
            wanted = [Shard(0)]
        if wanted is None or tensor.dim() == 0 or name == "rng":
            out[name] = tensor.clone()
        else:
            assert mesh is not None
            out[name] = _distribute(tensor, mesh, wanted)
    return out


def _distribute(tensor: Tensor, mesh: DeviceMesh, placements: list[Placement]) -> DTensor:
    local = tensor
    coordinates = mesh.get_coordinate()
    assert coordinates is not None
    for axis, placement in enumerate(placements):
        if isinstance(placement, Shard):
            chunks = torch.chunk(local, mesh.size(axis), dim=placement.dim)
            at = coordinates[axis]
            empty = local.narrow(placement.dim, 0, 0)
            local = chunks[at] if at < len(chunks) else empty
    return DTensor.from_local(
        local.clone(),
        mesh,
        placements,
        run_check=False,
        shape=tensor.shape,
        stride=tensor.stride(),
    )


def zeros_like(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A whole state of the same form with nothing in it."""
    return {name: torch.zeros_like(tensor) for name, tensor in state.items()}


def corrupt(path: Path) -> None:
    """Flip one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
