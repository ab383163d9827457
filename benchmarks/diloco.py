"""Streaming DiLoCo between two hosts on a slow link: bytes, step time, peak bandwidth and loss.

Two network namespaces, joined by a link of the given rate, hold one rank each; needs root. With
`--loss STEPS` it compares the loss at equal tokens instead, against data parallelism, over seeds
and without a limit on the link, which changes no loss.
"""

import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from harness import Result, options
from slow_link import ROOT, linked_hosts, prepare_tokens
from slow_link_rank import Gpt
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from comms.config import RankEnvironment
from comms.groups import join, leave
from comms.ledger import Ledger
from comms.outer.config import DilocoConfig
from comms.outer.diloco import StreamingDiloco
from comms.outer.schedule import peak_bytes_per_s, split_parameters
from tests.hosts.namespaces import why_not

PORT = 29_410
HELD_OUT = 40
"""Batches per rank."""

DEFAULTS: dict[str, int | str] = {
    "rate": "100mbit",
    "loss": 0,
    "seeds": 3,
    "width": 512,
    "layers": 5,
    "vocab": 8192,
    "length": 128,
    "batch": 4,
    "every": 100,
    "fragments": 5,
    "overlap": 5,
    "mixing": "0.5",
    "outer_lr": "0.7",
    "wire": "e3m0",
    "rounds": 3,
    "dense_steps": 2,
    "lr": "1e-3",
    "task": "",
}


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
    """Seconds and bytes of whole windows of `every` steps, in turns; all fragments travel once."""
    names = ("alone", "diloco", "ddp")
    ways = {name: make(name, task) for name in names}
    counter = Path(f"/sys/class/net/{task['device']}/statistics/tx_bytes")
    found: dict[str, Any] = {name: {"seconds": [], "sent_bytes": []} for name in names}
    outer = ways["diloco"].outer
    assert outer is not None
    done = dict.fromkeys(names, 0)
    for way in ways.values():
        way.step(0)
    # So that windows begin and end where fragments do.
    for number in range(1, task["every"]):
        ways["diloco"].step(number)
    outer.finish()
    waits, counts = [], []
    for _ in range(task["rounds"]):
        for name in names:
            steps = task["dense_steps"] if name == "ddp" else task["every"]
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
    """Held-out loss at the end of each way, of the global parameters where there are some, and of
    the islands' own."""
    found = {}
    for name in ("ddp", "diloco"):
        way = make(name, task)
        for number in range(task["loss"]):
            way.step(number)
        found[name] = held_out(way.module, task)
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


def rank_main(task: dict[str, Any]) -> None:
    """One rank: measure and write down what was found."""
    torch.set_num_threads(1)
    environment = RankEnvironment(
        rank=task["rank"],
        world_size=2,
        local_rank=0,
        local_world_size=1,
        host=str(task["rank"]),
        master_address=task["address"],
        master_port=PORT,
    )
    join(environment, deadline_s=120)
    found = measure_loss(task) if task["loss"] else measure_speed(task)
    Path(task["out"]).write_text(json.dumps(found))
    leave()


def run(shared: dict[str, Any], rate: str) -> dict[str, Any]:
    """Both ranks of one measurement; what rank 0 found."""
    with tempfile.TemporaryDirectory() as folder, linked_hosts(rate) as hosts:
        started: list[subprocess.Popen[bytes]] = []
        for rank, host in enumerate(hosts):
            out = str(Path(folder) / f"{rank}.json")
            own = {"rank": rank, "address": hosts[0].address, "device": host.device, "out": out}
            task = Path(folder) / f"task-{rank}.json"
            task.write_text(json.dumps(shared | own))
            words = [sys.executable, str(ROOT / "benchmarks/diloco.py"), f"--task={task}"]
            environment = [f"GLOO_SOCKET_IFNAME={host.device}", f"PYTHONPATH={ROOT}"]
            started.append(host.popen(["env", *environment, *words], host.folder / "log"))
        for process, host in zip(started, hosts, strict=True):
            if process.wait():
                raise SystemExit((host.folder / "log").read_text())
        found: dict[str, Any] = json.loads((Path(folder) / "0.json").read_text())
    return found


def record_speed(result: Result, task: dict[str, Any], found: dict[str, Any]) -> None:
    """Bytes, step time and the bandwidth that the formula asks for."""
    for name in ("alone", "diloco", "ddp"):
        figures = result.peers.setdefault("ddp", {}) if name == "ddp" else result.braid
        prefix = "" if name == "ddp" else f"{name}_"
        for figure, values in found[name].items():
            figures[f"{prefix}{figure}_per_step"] = statistics.median(values)
    step_s = statistics.median(found["alone"]["seconds"])
    sizes = found["message_bytes"]
    result.braid["waited_s_per_step"] = statistics.median(found["waited_s"])
    result.braid["counted_bytes_per_step"] = statistics.median(found["counted_bytes"])
    result.braid["peak_bytes_per_s"] = peak_bytes_per_s(sizes, task["overlap"], step_s)
    result.braid["peak_bytes_per_s_of_one_fragment"] = peak_bytes_per_s(
        [sum(sizes)], task["overlap"], step_s
    )
    ours = found["diloco"]
    result.ratio("ddp_bytes_over_diloco", found["ddp"]["sent_bytes"], ours["sent_bytes"])
    result.ratio("step_time_over_no_communication", ours["seconds"], found["alone"]["seconds"])
    result.ratio("ddp_step_time_over_diloco", found["ddp"]["seconds"], ours["seconds"])


def record_loss(result: Result, shared: dict[str, Any]) -> None:
    """Held-out losses at equal tokens, over seeds."""
    finals: dict[str, list[float]] = {"ddp": [], "diloco": [], "diloco_own": []}
    for seed in range(shared["seeds"]):
        for name, loss in run({**shared, "seed": seed}, "").items():
            finals[name].append(loss)
    result.braid["final_loss"] = statistics.median(finals["diloco"])
    result.braid["final_loss_of_an_island"] = statistics.median(finals["diloco_own"])
    result.peers["ddp"] = {"final_loss": statistics.median(finals["ddp"])}
    result.ratio("loss_over_ddp", finals["diloco"], finals["ddp"])
    result.ratio("island_loss_over_ddp", finals["diloco_own"], finals["ddp"])


def main() -> None:
    """Measure and print."""
    arguments = options(__doc__, **DEFAULTS)
    if arguments.task:
        rank_main(json.loads(Path(arguments.task).read_text()))
        return
    reason = why_not()
    if reason is not None:
        raise SystemExit(f"This benchmark needs two hosts: {reason}.")
    result = Result(name="diloco")
    with tempfile.TemporaryDirectory() as folder:
        tokens = Path(folder) / "tokens.npy"
        prepare_tokens(tokens, arguments.vocab)
        shared = {**{name: vars(arguments)[name] for name in DEFAULTS}, "tokens": str(tokens)}
        if arguments.loss:
            record_loss(result, shared)
        else:
            shared["seed"] = 0
            record_speed(result, shared, run(shared, arguments.rate))
    result.show(as_json=arguments.json)


if __name__ == "__main__":
    main()
