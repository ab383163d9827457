"""Streaming DiLoCo between two hosts on a slow link: bytes, step time, peak bandwidth and loss.

    python benchmarks/diloco.py --keep speed --minutes 4 [--rate 100mbit] [--rounds 3] [--json]
    python benchmarks/diloco.py --keep loss --minutes 4 --loss 400 [--seeds 3] [--json]

Two network namespaces, joined by a link of the given rate, hold one rank each; needs root. The
second form compares the loss at equal tokens, against data parallelism, over seeds and without a
limit on the link, which changes no loss.

With `--keep FOLDER` what was measured is kept there, and with `--minutes` no measurement begins
later than that: the same command again goes on, and prints what there is. A measurement is one
round of all ways in turns, or one way and seed.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from harness import Result, options
from kept import Kept, settings_of
from slow_link import ROOT, linked_hosts, prepare_tokens

from comms.outer.schedule import peak_bytes_per_s
from tests.hosts.namespaces import why_not

PORT = 29_410

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
    "dense_steps": 1,
    "lr": "1e-3",
    "keep": "",
    "minutes": "0",
}


def run(shared: dict[str, Any], rate: str) -> dict[str, Any]:
    """Both ranks of one measurement; what rank 0 found."""
    with tempfile.TemporaryDirectory() as folder, linked_hosts(rate) as hosts:
        started: list[subprocess.Popen[bytes]] = []
        for rank, host in enumerate(hosts):
            out = str(Path(folder) / f"{rank}.json")
            own = {"rank": rank, "address": hosts[0].address, "device": host.device, "out": out}
            task = Path(folder) / f"task-{rank}.json"
            task.write_text(json.dumps(shared | own))
            words = [sys.executable, str(ROOT / "benchmarks/diloco_rank.py"), str(task)]
            environment = [f"GLOO_SOCKET_IFNAME={host.device}", f"PYTHONPATH={ROOT}"]
            started.append(host.popen(["env", *environment, *words], host.folder / "log"))
        for process, host in zip(started, hosts, strict=True):
            if process.wait():
                raise SystemExit((host.folder / "log").read_text())
        found: dict[str, Any] = json.loads((Path(folder) / "0.json").read_text())
    return found


def measure_rounds(result: Result, shared: dict[str, Any], kept: Kept) -> None:
    """Speed and bytes, a round at a time."""
    task = {**shared, "seed": 0}
    found: dict[str, Any] = {}
    for number in range(shared["rounds"]):
        one = kept.measured(f"round-{number}", partial(run, task, shared["rate"]))
        if one is None:
            continue
        for name in ("alone", "diloco", "ddp"):
            for figure, values in one[name].items():
                found.setdefault(name, {}).setdefault(figure, []).extend(values)
        for figure in ("waited_s", "counted_bytes"):
            found.setdefault(figure, []).extend(one[figure])
        found["message_bytes"] = one["message_bytes"]
    if found:
        record_speed(result, task, found)


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


def record_loss(result: Result, shared: dict[str, Any], kept: Kept) -> None:
    """Held-out losses at equal tokens, over seeds."""
    finals: dict[str, list[float]] = {"ddp": [], "diloco": [], "diloco_own": []}
    for seed in range(shared["seeds"]):
        both: dict[str, float] = {}
        for way in ("ddp", "diloco"):
            task = {**shared, "seed": seed, "way": way}
            both |= kept.measured(f"{way}-{seed}", partial(run, task, "")) or {}
        if len(both) == len(finals):
            for name, loss in both.items():
                finals[name].append(loss)
    if not finals["ddp"]:
        return
    result.braid["final_loss"] = statistics.median(finals["diloco"])
    result.braid["final_loss_of_an_island"] = statistics.median(finals["diloco_own"])
    result.peers["ddp"] = {"final_loss": statistics.median(finals["ddp"])}
    result.ratio("loss_over_ddp", finals["diloco"], finals["ddp"])
    result.ratio("island_loss_over_ddp", finals["diloco_own"], finals["ddp"])


def main() -> None:
    """Measure and print."""
    arguments = options(__doc__, **DEFAULTS)
    reason = why_not()
    if reason is not None:
        raise SystemExit(f"This benchmark needs two hosts: {reason}.")
    result = Result(name="diloco")
    kept = Kept(arguments.keep, float(arguments.minutes), settings_of(arguments))
    with kept.place() as folder:
        tokens = prepare_tokens(folder, arguments.vocab)
        shared = {**{name: vars(arguments)[name] for name in DEFAULTS}, "tokens": str(tokens)}
        shared["port"] = PORT
        if arguments.loss:
            record_loss(result, shared, kept)
        else:
            measure_rounds(result, shared, kept)
    result.missing = kept.missing
    result.show(as_json=arguments.json)


if __name__ == "__main__":
    main()
