"""Hierarchical sharding on 4 ranks beside plain FSDP2: step time, bytes per axis, peak memory.

    python -m benchmarks.sharding [--width 512] [--blocks 12] [--rounds 2] [--rate 1gbit] [--json]

Step times are taken of all contenders in turns in the same processes; `--rate` puts half of the
ranks on another host behind such a link (needs root). Peak memory is taken in processes of its own
for every contender: resident memory above what the process had before there was a model, whose
activations are kept small, as a share of what `parallel.hierarchy.volume` says.
"""

import contextlib
import gc
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
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

from benchmarks.harness import Result, options
from comms import groups
from comms.config import RankEnvironment
from comms.ledger import Ledger
from parallel.hierarchy.sharding import HierarchicalSharding
from parallel.hierarchy.volume import held_bytes, working_bytes
from parallel.hierarchy.widths import Widths

ROOT = Path(__file__).resolve().parents[1]
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
    environment = RankEnvironment(
        rank=given.rank,
        world_size=RANKS,
        local_rank=given.rank,
        local_world_size=RANKS,
        host="127.0.0.1",
        master_address=given.address,
        master_port=given.port,
    )
    groups.join(environment, deadline_s=60)
    found = measure_times(given) if given.what == "times" else measure_memory(given.what, given)
    if given.rank == 0:
        Path(given.out).write_text(json.dumps(found))
    groups.leave()


def start_all(given: Namespace, what: str, rate: str) -> dict:
    """Measure `what` on all ranks, on this host or on two with a link between them."""
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        prefixes, address = [[] for _ in range(RANKS)], "127.0.0.1"
        if rate:
            prefixes, address = enter_two_hosts(stack, rate)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        out = Path(folder) / "result.json"
        common = {**vars(given), "address": address, "port": port, "out": out, "what": what}
        common.pop("json")
        variables = dict(os.environ)
        if what != "times":
            # Freed memory goes back at once: what is resident is what is used.
            variables |= {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
        processes = []
        for rank, prefix in enumerate(prefixes):
            words = [f"--{name}={value}" for name, value in (common | {"rank": rank}).items()]
            command = [*prefix, sys.executable, "-m", "benchmarks.sharding", *words]
            processes.append(subprocess.Popen(command, cwd=ROOT, env=variables))
        codes = [process.wait() for process in processes]
        if any(codes):
            raise SystemExit(f"ranks ended with {codes} while measuring {what}")
        return json.loads(out.read_text())


def enter_two_hosts(stack: contextlib.ExitStack, rate: str) -> tuple[list[list[str]], str]:
    """How to start each rank on its host, and where they meet."""
    from tests.hosts.namespaces import two_hosts, why_not

    if reason := why_not():
        raise SystemExit(f"--rate cannot be measured here: {reason}")
    hosts = stack.enter_context(two_hosts())
    for host in hosts:
        host.limit(rate)
    prefixes = [
        host.command(["env", f"GLOO_SOCKET_IFNAME={host.device}"])
        for host in hosts
        for _ in range(RANKS // 2)
    ]
    return prefixes, hosts[0].address


def report(given: Namespace, timed: dict, memory: dict[str, dict]) -> Result:
    """Medians, bytes per axis, peaks, and ours over FSDP2, turn by turn."""
    result = Result(name="sharding")
    theirs = timed["times"][PEER]
    result.peers[PEER] = {
        "step_s": statistics.median(theirs),
        "peak_mb": memory[PEER]["measured"] / 1e6,
    }
    for name in WIDTHS:
        own, peak = timed["times"][name], memory[name]
        result.braid |= {
            f"{name}/step_s": statistics.median(own),
            f"{name}/waited_s": statistics.median(timed["waited"][name]),
            f"{name}/peak_mb": peak["measured"] / 1e6,
            f"{name}/formula_mb": peak["formula"] / 1e6,
            f"{name}/peak_over_formula": peak["measured"] / peak["formula"],
        }
        for axis, sent in timed["sent"][name].items():
            result.braid[f"{name}/sent_mb {axis}"] = sent / 1e6
        result.ratio(f"{name}/{PEER}", own, theirs)
    return result


def main() -> None:
    """Run all ranks of all measurements, or be one rank of one."""
    given = options(
        __doc__,
        width=512,
        blocks=12,
        rounds=2,
        tokens=64,
        turns=5,
        dtype="fp32",
        quantized=0,
        rate="",
        what="",
        rank=-1,
        address="",
        port=0,
        out="",
    )
    if given.rank >= 0:
        worker(given)
        return
    timed = start_all(given, "times", given.rate)
    memory = {name: start_all(given, name, "") for name in (*WIDTHS, PEER)}
    report(given, timed, memory).show(as_json=given.json)


if __name__ == "__main__":
    main()
