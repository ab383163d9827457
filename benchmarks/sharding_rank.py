"""One rank of `sharding.py`: step times of all contenders, or the peak memory of one."""

import gc
import json
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from benchmarks.linked_ranks import join
from comms.groups import leave
from comms.ledger import Ledger
from parallel.hierarchy.sharding import HierarchicalSharding
from parallel.hierarchy.volume import held_bytes, working_bytes
from parallel.hierarchy.widths import Widths

RANKS = 4
PEER = "fsdp2"
WIDTHS = {
    "w1 g2 o4": Widths(weights=1, gradients=2, optimizer=4),
    "w2 g2 o4": Widths(weights=2, gradients=2, optimizer=4),
    "w2 g2 o2": Widths(weights=2, gradients=2, optimizer=2),
    "w4 g4 o4": Widths(weights=4, gradients=4, optimizer=4),
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}

Step = Callable[[], object]


class Block(nn.Module):
    """A wide layer and a narrow one, around a residual stream."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.tanh(self.up(x)))


def empty_model(given: Namespace) -> nn.Sequential:
    """On meta."""
    with torch.device("meta"):
        return nn.Sequential(*(Block(given.width) for _ in range(given.blocks)))


@torch.no_grad()
def fill(model: nn.Module) -> None:
    """Storage and small random weights."""
    model.to_empty(device="cpu")
    for parameter in model.parameters():
        local = parameter.to_local() if isinstance(parameter, DTensor) else parameter
        local.copy_(0.02 * torch.randn(local.shape))


def hierarchical(name: str, given: Namespace, ledger: Ledger) -> tuple[Step, HierarchicalSharding]:
    """A training step of ours, and what it trains."""
    model = empty_model(given)
    sharding = HierarchicalSharding(
        model,
        blocks=list(model.children()),
        widths=WIDTHS[name],
        param_dtype=DTYPES[given.dtype],
        quantized_gather=given.quantized > 0,
        ledger=ledger,
    )
    fill(model)
    sharding.adopt()
    optimizer = torch.optim.AdamW(sharding.parameters(), lr=1e-4, fused=True)
    inputs = torch.randn(given.tokens, given.width)

    def step() -> None:
        for number in range(given.rounds):
            sharding.gradients.start_round(last=number == given.rounds - 1)
            model(inputs).float().square().mean().backward()
        sharding.gradients.finish()
        optimizer.step()
        sharding.publish()
        sharding.gradients.zero()

    return step, sharding


def plain_fsdp2(given: Namespace) -> Step:
    """The same model with FSDP2 over all ranks, as published."""
    model = empty_model(given)
    policy = MixedPrecisionPolicy(param_dtype=DTYPES[given.dtype], reduce_dtype=torch.float32)
    mesh = init_device_mesh("cpu", (RANKS,))
    for module in (*model.children(), model):
        fully_shard(module, mesh=mesh, mp_policy=policy)
    fill(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    inputs = torch.randn(given.tokens, given.width)

    def step() -> None:
        for _ in range(given.rounds):
            model(inputs).float().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def contender(name: str, given: Namespace) -> tuple[Step, int]:
    """A step of a contender, and the bytes it should need at most; 0 where we have no formula."""
    if name == PEER:
        return plain_fsdp2(given), 0
    step, sharding = hierarchical(name, given, Ledger())
    return step, peak_bytes(sharding, given)


def measure_times(given: Namespace) -> dict[str, object]:
    """Seconds of the slowest rank per step of every contender, and what a step of ours sends."""
    ledgers = {name: Ledger() for name in WIDTHS}
    steps: dict[str, Step] = {name: hierarchical(name, given, ledgers[name])[0] for name in WIDTHS}
    steps[PEER] = plain_fsdp2(given)
    times: dict[str, list[float]] = {name: [] for name in steps}
    sent, waited = {}, {name: [] for name in WIDTHS}
    for turn in range(given.turns + 1):
        for name, step in steps.items():
            seconds = slowest_s(step)
            counted, waited_s = ledgers[name].take() if name in ledgers else ({}, 0.0)
            if turn:  # the first one touches memory and makes connections
                times[name].append(seconds)
                if name in ledgers:
                    sent[name] = counted
                    waited[name].append(waited_s)
    return {"times": times, "sent": sent, "waited": waited}


def slowest_s(step: Step) -> float:
    """Seconds until the last rank is done."""
    dist.barrier()
    begin_s = time.perf_counter()
    step()
    seconds = torch.tensor(time.perf_counter() - begin_s, dtype=torch.float64)
    dist.all_reduce(seconds, op=dist.ReduceOp.MAX)
    return seconds.item()


def measure_memory(name: str, given: Namespace) -> dict[str, object]:
    """Peak of resident memory in a step, and what the formula says."""
    # A tiny model first: code that is loaded at its first use is not what the model takes.
    small, _ = contender(name, Namespace(**(vars(given) | {"width": 32})))
    small()
    del small
    gc.collect()
    before_bytes = resident_bytes("VmRSS")
    step, expected = contender(name, given)
    step()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    step()
    return {"measured": resident_bytes("VmHWM") - before_bytes, "formula": expected}


def peak_bytes(sharding: HierarchicalSharding, given: Namespace) -> int:
    """What a rank holds, and works with in a step."""
    shapes = [group.shape for group in sharding.groups]
    widths, param_bytes = sharding.groups[0].widths, DTYPES[given.dtype].itemsize
    place = sharding.groups[0].place
    held = held_bytes(shapes, widths, place, param_bytes=param_bytes)
    working = working_bytes(
        shapes,
        widths,
        param_bytes=param_bytes,
        quantized=given.quantized > 0,
        transport_copies=True,
    )
    return sum(held.values()) + working


def resident_bytes(field: str) -> int:
    """A field of this process's memory status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field + ":"))


def worker(given: Namespace) -> None:
    """One rank of one measurement; rank 0 writes what came out."""
    torch.set_num_threads(1)
    join(given)
    found = measure_times(given) if given.what == "times" else measure_memory(given.what, given)
    if given.rank == 0:
        Path(given.out).write_text(json.dumps(found))
    leave()
