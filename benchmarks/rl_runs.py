"""The runs that rl.py compares: Braid's by rewards, TRL's, and the supervised one before them.

All three are started as users start them, as processes of their own.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

from safetensors import safe_open

from trainer.run_folder import read_lines

ROOT = Path(__file__).resolve().parent.parent
FAULTS = ("worker_lost", "worker_hung", "worker_failed", "rollout_lost", "publish_failed")
WEIGHT_DECAY = 0.01
_FP32_BYTES = 4


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all runs have in common."""

    hidden: int
    layers: int
    digits: int
    prompts: int
    """Questions of a step."""

    samples: int
    """Answers to each."""

    new_tokens: int
    start_steps: int
    """Supervised steps before."""

    start_lr: float
    steps: int
    """Steps by rewards."""

    lr: float
    dynamic: bool
    """Whether Braid replaces groups whose rewards are equal; TRL never does."""

    ranks: int
    """TRL's processes, which share two threads."""


def start_recipe(setting: Setting, folder: Path) -> dict[str, Any]:
    """The supervised run: solved sums of another series than that of the rewards."""
    return {
        "run": {"dir": str(folder), "name": "start"},
        "model": {
            "hidden_size": setting.hidden,
            "num_layers": setting.layers,
            "num_heads": 4,
            "num_kv_heads": 4,
            "intermediate_size": setting.hidden * 43 // 16,
            "tie_embeddings": True,
            "max_context_tokens": 128,
        },
        "data": {"source": "task", "tokenizer": "bytes", "seq_len": 128, "packing": "whole"},
        "train": {
            "steps": setting.start_steps,
            "global_batch_tokens": 1024,
            "max_tokens_per_device": 1024,
        },
        "optim": {"lr": setting.start_lr, "weight_decay": WEIGHT_DECAY},
        "sched": {"name": "constant", "warmup_steps": 20},
        "cluster": {"num_workers": 1},
    }


def rewards_recipe(
    setting: Setting, start: Path, folder: Path, *, staleness: int, seed: int
) -> dict[str, Any]:
    """A run by rewards that goes on from the folder `start`."""
    answers = setting.prompts * setting.samples
    return {
        "run": {"dir": str(folder), "name": "rewards", "seed": seed},
        "model": {"path": str(start)},
        "data": {"source": "task", "seq_len": 128, "packing": "whole"},
        "train": {"steps": setting.steps, "max_tokens_per_device": 32 * answers},
        "optim": {"lr": setting.lr, "weight_decay": WEIGHT_DECAY},
        "sched": {"name": "constant", "warmup_steps": 0},
        "rl": {
            "enabled": True,
            "prompts_per_step": setting.prompts,
            "samples_per_prompt": setting.samples,
            "max_staleness": staleness,
            "max_prompt_tokens": 16,
            "dynamic_sampling": setting.dynamic,
            "task": {"kind": "arithmetic", "digits": setting.digits},
            "objective": {"kind": "decoupled_ppo"},
        },
        "rollout": {
            "workers": 1,
            "max_new_tokens": setting.new_tokens,
            "prompts_per_worker": 2 * setting.prompts,
            "engine": {"max_sequences": answers, "forward_tokens": 2 * answers},
        },
        "cluster": {"num_workers": 1},
    }


def make_start(setting: Setting, folder: Path) -> dict[str, float]:
    """Train the weights from which all runs go on, into `folder`/weights; what they are."""
    # Of a part that was broken off.
    shutil.rmtree(weights_of(folder), ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="braid-rl-") as place:
        run = _run_recipe(start_recipe(setting, Path(place)), Path(place))
        words = ["export", str(run), "--to", str(weights_of(folder)), "--dtype", "fp32"]
        _call([sys.executable, "-m", "recipes.cli", *words], Path(place) / "export.log")
    numbers = 0
    for file in weights_of(folder).glob("*.safetensors"):
        with safe_open(file, framework="np") as tensors:
            names = tuple(tensors.keys())
            numbers += sum(prod(tensors.get_slice(name).get_shape()) for name in names)
    return {"parameters": numbers, "weight_bytes": _FP32_BYTES * numbers}


def weights_of(folder: Path) -> Path:
    """Where the weights are from which all runs go on."""
    return folder / "weights"


def run_braid(setting: Setting, folder: Path, *, staleness: int, seed: int) -> dict[str, Any]:
    """Braid's run: a rank that trains and a process that samples, one thread each. Per step."""
    with tempfile.TemporaryDirectory(prefix="braid-rl-") as place:
        recipe = rewards_recipe(
            setting, weights_of(folder), Path(place), staleness=staleness, seed=seed
        )
        run = _run_recipe(recipe, Path(place))
        found = of_lines(read_lines(run / "metrics.jsonl"), setting)
        events = read_lines(run / "events.jsonl")
        return {**found, "faults": sum(event["kind"] in FAULTS for event in events)}


def of_lines(lines: Sequence[Mapping[str, Any]], setting: Setting) -> dict[str, list[float]]:
    """Columns of metrics.jsonl; `tokens` are those of the answers that the step judged."""
    columns: dict[str, list[float]] = {}
    for line in lines:
        groups = max(setting.prompts, line["groups/trained"] + line["groups/dropped_equal"])
        values = {
            "time": line["time"],
            "step_s": line["step_s"],
            "accuracy": line["accuracy"],
            "tokens": line["response_length/mean"] * groups * setting.samples,
            "pause_s": line.get("publish/pause_s", 0.0),
            "train_pause_s": line.get("publish/train_pause_s", 0.0),
            "sent_bytes": line.get("publish/bytes", 0.0),
            "trainer_wait_s": line.get("timing_s/trainer_wait", 0.0),
            "rollout_wait_s": line.get("timing_s/rollout_wait", 0.0),
            "staleness": line["staleness/mean"],
        }
        for name, value in values.items():
            columns.setdefault(name, []).append(value)
    return columns


def why_no_trl(python: str) -> str | None:
    """Why TRL cannot be measured with this interpreter; None where it can."""
    if not python:
        return "no --peers PYTHON with TRL was given"
    try:
        tried = subprocess.run(
            [python, "-c", "from trl import GRPOTrainer; import datasets"],
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError as error:
        return str(error)
    return None if tried.returncode == 0 else tried.stderr.strip().splitlines()[-1]


def run_trl(setting: Setting, folder: Path, python: str, *, seed: int) -> dict[str, Any]:
    """TRL's run, its processes sharing two threads. Per step."""
    with tempfile.TemporaryDirectory(prefix="braid-rl-") as place:
        out = Path(place) / "steps.jsonl"
        task = {
            **asdict(setting),
            "model": str(weights_of(folder)),
            "folder": place,
            "out": str(out),
            "seed": seed,
            "threads": max(1, 2 // setting.ranks),
            "weight_decay": WEIGHT_DECAY,
        }
        file = Path(place) / "task.json"
        file.write_text(json.dumps(task))
        launcher = ["-m", "torch.distributed.run", "--standalone"]
        words = [
            *launcher,
            f"--nproc_per_node={setting.ranks}",
            "benchmarks/rl_trl_rank.py",
            str(file),
        ]
        _call([python, *words], Path(place) / "trl.log", OMP_NUM_THREADS=str(task["threads"]))
        lines = read_lines(out)
    return {name: [line[name] for line in lines] for name in ("time", "accuracy", "tokens")}


def _run_recipe(recipe: dict[str, Any], place: Path) -> Path:
    """Run it to its end; the run folder."""
    # JSON is YAML.
    file = place / "recipe.yaml"
    file.write_text(json.dumps(recipe, indent=2))
    _call([sys.executable, "-m", "recipes.cli", "run", str(file)], place / "driver.log")
    return place / recipe["run"]["name"]


def _call(words: Sequence[str], log: Path, **environment: str) -> None:
    """Run a program to its end. Raises SystemExit with its last words where it fails."""
    with log.open("ab") as out:
        done = subprocess.run(
            words,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
            stdout=out,
            stderr=out,
            check=False,
        )
    if done.returncode:
        raise SystemExit(f"{' '.join(words)} ended with {done.returncode}:\n{_tail(log)}")


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-4000:]
