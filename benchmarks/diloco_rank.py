"""One rank of benchmarks/diloco.py. Started by it with the path of a JSON document; writes its
figures as one JSON document."""

import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from slow_link_rank import Gpt
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from comms.config import RankEnvironment
from comms.groups import join, leave
from comms.ledger import Ledger
from comms.outer.config import DilocoConfig
from comms.outer.diloco import StreamingDiloco
from comms.outer.schedule import split_parameters

HELD_OUT = 40
"""Batches per rank."""


@dataclass(frozen=True)
class Way:
    """One model that trains in one way, a numbered step at a time."""

    step: Callable[[int], None]
    module: torch.nn.Module
    outer: StreamingDiloco | None
    ledger: Ledger


def make(name: str, task: dict[str, Any]) -> Way:
    """`diloco`, `alone` (nothing is sent) or `ddp`, from equal parameters."""
    torch.manual_seed(task["seed"])
    module = Gpt(task["vocab"], task["width"], task["layers"], task["length"])
    model = DistributedDataParallel(module) if name == "ddp" else module
    optimizer = torch.optim.AdamW(module.parameters(), lr=float(task["lr"]), fused=True)
    ledger = Ledger()
    outer = None
    if name == "diloco":
        blocks = [f"blocks.{n}" for n in range(task["layers"])]
        config = DilocoConfig(
            every=task["every"],
            overlap_steps=task["overlap"],
            mixing=float(task["mixing"]),
            outer_lr=float(task["outer_lr"]),
            wire=task["wire"],
        )
        fragments = split_parameters(dict(module.named_parameters()), blocks, task["fragments"])
        group = dist.new_group(backend="gloo")
        outer = StreamingDiloco(fragments, group=group, config=config, ledger=ledger)
    batch = batches(task)

    def step(number: int) -> None:
        if task["loss"]:
            set_lr(optimizer, float(task["lr"]), number / task["loss"])
        model(batch(number)).backward()
        optimizer.step()
        optimizer.zero_grad()
        if outer is not None:
            outer.step()

    return Way(step, module, outer, ledger)


def set_lr(optimizer: torch.optim.Optimizer, peak: float, done: float) -> None:
    """A twentieth of warm-up, then a cosine to a hundredth of the peak."""
    share = min(20 * done + 0.01, 0.01 + 0.99 * (1 + math.cos(math.pi * done)) / 2)
    for group in optimizer.param_groups:
        group["lr"] = peak * share


def batches(task: dict[str, Any]) -> Callable[[int], Tensor]:
    """This rank's batch of a step."""
    tokens = torch.from_numpy(np.load(task["tokens"]))

    def batch(step: int) -> Tensor:
        seed = 1_000_003 * task["seed"] + 2 * step + task["rank"]
        generator = torch.Generator().manual_seed(seed)
        last = tokens.numel() - task["length"] - 1
        starts = torch.randint(0, last, (task["batch"],), generator=generator)
        return torch.stack([tokens[s : s + task["length"] + 1] for s in starts.tolist()]).long()

    return batch


def measure_speed(task: dict[str, Any]) -> dict[str, Any]:
    """Seconds and bytes of a whole window of `every` steps of each way; all fragments travel
    once."""
    names = ("alone", "diloco", "ddp")
    ways = {name: make(name, task) for name in names}
    counter = Path(f"/sys/class/net/{task['device']}/statistics/tx_bytes")
    found: dict[str, Any] = {name: {"seconds": [], "sent_bytes": []} for name in names}
    outer = ways["diloco"].outer
    assert outer is not None
    done = dict.fromkeys(names, 0)
    for way in ways.values():
        way.step(0)
    # Windows in turns, short, so that what else the machine does hits all ways alike; a fragment
    # leaves in the middle of each.
    fragments, window = task["fragments"], task["every"] // task["fragments"]
    for number in range(1, task["every"] + window // 2):
        ways["diloco"].step(number)
    outer.finish()
    waits, counts = [], []
    for _ in range(fragments):
        for name in names:
            steps = task["dense_steps"] if name == "ddp" else window
            ways[name].ledger.take()
            dist.barrier()
            sent, begin_s = int(counter.read_text()), time.perf_counter()
            for _ in range(steps):
                done[name] += 1
                ways[name].step(done[name])
            elapsed_s = time.perf_counter() - begin_s
            if name == "diloco":
                outer.finish()
                ledger_bytes, waited_s = ways[name].ledger.take()
                waits.append(waited_s / steps)
                counts.append(sum(ledger_bytes.values()) / steps)
            dist.barrier()
            found[name]["seconds"].append(elapsed_s / steps)
            found[name]["sent_bytes"].append((int(counter.read_text()) - sent) / steps)
    sizes = outer.message_bytes()
    outer.close()
    return found | {"waited_s": waits, "counted_bytes": counts, "message_bytes": sizes}


def measure_loss(task: dict[str, Any]) -> dict[str, Any]:
    """Held-out loss at the end of one way, of the global parameters where there are some, and of
    the islands' own."""
    name = task["way"]
    way = make(name, task)
    for number in range(task["loss"]):
        way.step(number)
    found = {name: held_out(way.module, task)}
    if way.outer is not None:
        way.outer.finish()
        found["diloco_own"] = found[name]
        with torch.no_grad():
            for key, value in way.outer.global_parameters().items():
                way.module.get_parameter(key).copy_(value)
        found[name] = held_out(way.module, task)
        way.outer.close()
    return found


@torch.no_grad()
def held_out(module: torch.nn.Module, task: dict[str, Any]) -> float:
    """Mean loss over batches that no step trains on, of both ranks together."""
    batch = batches(task)
    numbers = range(task["loss"], task["loss"] + HELD_OUT)
    total = torch.tensor([float(module(batch(number))) for number in numbers]).mean()
    dist.all_reduce(total)
    return float(total) / 2


def main() -> None:
    """Join the other rank, measure, and write what was found."""
    task = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(1)
    environment = RankEnvironment(
        rank=task["rank"],
        world_size=2,
        local_rank=0,
        local_world_size=1,
        host=str(task["rank"]),
        master_address=task["address"],
        master_port=task["port"],
    )
    join(environment, deadline_s=120)
    found = measure_loss(task) if task["loss"] else measure_speed(task)
    Path(task["out"]).write_text(json.dumps(found))
    leave()


if __name__ == "__main__":
    main()
