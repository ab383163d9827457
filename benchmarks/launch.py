"""What Ray costs Braid: the same recipe through `braid run` and through torchrun, in turns.

    python benchmarks/launch.py [--recipe quickstart] [--steps 12] [--rounds 3] [--json]

A Ray head is started first, as a cluster that is already running would be. Figures are the median
step of each run, its first two steps left out, and the seconds from the command to the end of the
first step.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness import Result, options

from trainer.run_folder import read_lines

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
RANKS = 2


@contextmanager
def ray_head() -> Iterator[str]:
    """A Ray head on loopback; its address."""
    port = 20_000 + int(time.time()) % 10_000
    environment = os.environ | {"RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0"}
    command = [
        *(str(BIN / "ray"), "start", "--head", "--block", "--include-dashboard=false"),
        *("--node-ip-address=127.0.0.1", f"--port={port}", f"--num-cpus={RANKS}"),
        "--object-store-memory=100000000",
    ]
    with tempfile.TemporaryFile() as log:
        head = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            time.sleep(8)
            yield f"127.0.0.1:{port}"
        finally:
            head.terminate()
            head.wait(timeout=30)


def one_run(command: list[str], folder: Path, name: str) -> tuple[float, float]:
    """Median step in seconds, and seconds from the command to the end of the first step."""
    began_s = time.time()
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout}\n{done.stderr}")
    records = read_lines(folder / name / "metrics.jsonl")
    steps_s = [r["step_s"] for r in records[2:]]
    return statistics.median(steps_s), records[0]["time"] - began_s


def run(recipe: str, steps: int, rounds: int) -> Result:
    """Measure and sum up."""
    steps_s: dict[str, list[float]] = {"ray": [], "torchrun": []}
    first_s: dict[str, list[float]] = {"ray": [], "torchrun": []}
    with ray_head() as address, tempfile.TemporaryDirectory() as folder:
        for number in range(rounds):
            for path in ("ray", "torchrun") if number % 2 else ("torchrun", "ray"):
                name = f"{path}{number}"
                overrides = [
                    f"run.dir={folder}",
                    f"run.name={name}",
                    f"train.steps={steps}",
                    "sched.warmup_steps=1",
                ]
                if path == "ray":
                    command = [str(BIN / "braid"), "run", recipe, f"cluster.address={address}"]
                else:
                    command = [str(BIN / "torchrun"), f"--nproc-per-node={RANKS}"]
                    command += ["-m", "recipes.torchrun", recipe]
                step_s, launch_s = one_run([*command, *overrides], Path(folder), name)
                steps_s[path].append(step_s)
                first_s[path].append(launch_s)
    result = Result(name="launch")
    result.braid = {
        "ray step_s": statistics.median(steps_s["ray"]),
        "torchrun step_s": statistics.median(steps_s["torchrun"]),
        "ray first_step_s": statistics.median(first_s["ray"]),
        "torchrun first_step_s": statistics.median(first_s["torchrun"]),
    }
    # As speed: above 1 the Ray path is the faster one.
    result.ratio("speed ray/torchrun", steps_s["torchrun"], steps_s["ray"])
    result.ratio("first_step_s ray/torchrun", first_s["ray"], first_s["torchrun"])
    return result


if __name__ == "__main__":
    given = options(__doc__, recipe="quickstart", steps=12, rounds=3)
    run(given.recipe, steps=given.steps, rounds=given.rounds).show(as_json=given.json)
