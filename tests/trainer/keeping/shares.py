"""Snapshots of small states, for tests."""

from pathlib import Path

import torch
from torch import Tensor

from trainer.checkpoint.share import plan_share
from trainer.keeping.slot import Owner
from trainer.keeping.snapshots import Snapshots

RUN = "5a" * 16


def mixed_state(seed: int) -> dict[str, Tensor]:
    """Every kind of tensor: types, odd sizes, scalars, empty ones, strides, several chunks."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "large": torch.randn(300, 500, generator=generator),
        "half": torch.randn(33, 7, generator=generator).bfloat16(),
        "bytes": torch.randint(0, 255, (13,), generator=generator, dtype=torch.uint8),
        "turned": torch.randn(200, 450, generator=generator).t(),
        "scalar": torch.tensor(float(seed)),
        "flag": torch.tensor([True, False, seed % 2 == 0]),
        "counts": torch.arange(seed, seed + 5),
        "nothing": torch.empty(0, 4),
    }


def snapshots_of(folder: Path, state: dict[str, Tensor], *, generation: int = 1) -> Snapshots:
    """Of a process that is alone."""
    owner = Owner(run=RUN, generation=generation, rank=0, ranks=1)
    return Snapshots(folder, owner, plan_share(state, None), slots=2, meta={"step": 0})


def keep(folder: Path, steps: range) -> None:
    """Snapshots of the mixed state of each step; the last two stay."""
    snapshots = snapshots_of(folder, mixed_state(0))
    for step in steps:
        snapshots.capture(step, mixed_state(step), {"step": step})
        snapshots.settle()
    snapshots.close()
    assert snapshots.failure is None
