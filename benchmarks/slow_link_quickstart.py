"""What compression does to the quickstart: gradient bytes, and loss over seeds.

    python benchmarks/slow_link_quickstart.py --keep FOLDER --minutes 4 [--seeds 3] [--json]
    python benchmarks/slow_link_quickstart.py --replica "method=powersgd rank=16 values=fp4"

The recipe `quickstart`, AdamW, two replicas under torchrun, once with whole gradients and once with
what `--replica` says, words of `comms.replica`: by default EControl at 1 %. Losses are means over
the last tenth of the steps; bytes are what replicas sent per step over all steps, the first dense
ones included, and at the end.

With `--keep FOLDER` what was measured is kept there, and with `--minutes` no run begins later than
that: the same command again goes on, and prints what there is.
"""

import os
import statistics
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from harness import Result, options
from kept import Kept, settings_of

from trainer.run_folder import read_lines

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
MIB = 2.0**20


def train(way: str, seed: int, arguments: Any) -> dict[str, float]:
    """Losses and bytes of one run."""
    with tempfile.TemporaryDirectory() as folder:
        overrides = [
            *(f"run.dir={folder}", "run.name=run", f"run.seed={seed}", "parallel.replica=2"),
            *(f"train.steps={arguments.steps}", "checkpoint.interval_steps=100000"),
            *arguments.overrides.split(),
        ]
        if way == "compressed":
            overrides += [f"comms.replica.{word}" for word in arguments.replica.split()]
        command = [str(BIN / "torchrun"), "--nproc-per-node=2", "--master-port=29416"]
        done = subprocess.run(
            [*command, "-m", "recipes.torchrun", "quickstart", *overrides],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise SystemExit(f"{way} failed:\n{done.stdout}\n{done.stderr}")
        steps = read_lines(Path(folder) / "run" / "metrics.jsonl")
    last = steps[-max(1, len(steps) // 10) :]
    found = {"final_loss": statistics.mean(step["loss"] for step in last)}
    if way == "compressed":
        found["sent_bytes_per_step"] = MIB * statistics.mean(s["replica_sent_mib"] for s in steps)
        found["dense_bytes_per_step"] = MIB * statistics.mean(s["replica_dense_mib"] for s in steps)
        found["final_saving"] = statistics.median(step["replica_saving"] for step in last)
    return found


def main() -> None:
    """Measure and print."""
    arguments = options(
        __doc__,
        seeds=3,
        steps=350,
        replica="method=econtrol ratio=0.01",
        overrides="",
        keep="",
        minutes="0",
    )
    kept = Kept(arguments.keep, float(arguments.minutes), settings_of(arguments))
    result = Result(name="slow_link_quickstart")
    pairs: list[tuple[dict[str, float], dict[str, float]]] = []
    for seed in range(arguments.seeds):
        found = [
            kept.measured(f"{way}-{seed}", partial(train, way, seed, arguments))
            for way in ("none", "compressed")
        ]
        if found[0] is not None and found[1] is not None:
            pairs.append((found[0], found[1]))
    if pairs:
        ours = [own for _, own in pairs]
        for figure in ours[0]:
            result.braid[f"compressed_{figure}"] = statistics.median(own[figure] for own in ours)
        losses = [dense["final_loss"] for dense, _ in pairs]
        result.braid["dense_final_loss"] = statistics.median(losses)
        result.ratio("loss_over_dense", [own["final_loss"] for own in ours], losses)
        dense_bytes = [own["dense_bytes_per_step"] for own in ours]
        sent_bytes = [own["sent_bytes_per_step"] for own in ours]
        result.ratio("dense_bytes_over_compressed", dense_bytes, sent_bytes)
    result.missing = kept.missing
    result.show(as_json=arguments.json)


if __name__ == "__main__":
    main()
