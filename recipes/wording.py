"""Numbers as people read them, and the line of a step that they search for. Pure."""

from collections.abc import Mapping
from typing import Any

GIB = 1024**3


def duration(seconds: float) -> str:
    """`45s`, `2m10s`, `1h03m`, `2d04h`."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"


def count(number: float) -> str:
    """`950`, `9.3M`, `1.04B`."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.0f}"


def gib(size_bytes: float) -> str:
    """`0.61 GiB`."""
    return f"{size_bytes / GIB:.2f} GiB"


def step_line(record: Mapping[str, Any]) -> str:
    """One step on one line: `record` is a line of metrics.jsonl with `total_steps` and `eta_s`."""
    parts = [
        f"step: {record['step']}/{record['total_steps']}",
        f"loss: {record['loss']:.4f}",
        f"grad_norm: {record['grad_norm']:.2f}",
        f"lr: {record['lr']:.1e}",
        f"tok/s: {record['tokens_per_s']:,.0f}",
        f"mfu: {100 * record['mfu']:.1f}%",
        f"mem: {record['memory_gib']:.2f}GiB",
        f"step_s: {record['step_s']:.2f}",
        f"eta: {duration(record['eta_s'])}",
    ]
    if record["skipped"]:
        parts.append("skipped: not finite")
    return "  ".join([*parts[:2], *of_rewards(record), *parts[2:]])


def of_rewards(record: Mapping[str, Any]) -> list[str]:
    """What a step by rewards has besides: nothing for the others."""
    if "reward/mean" not in record:
        return []
    waits = (record.get("timing_s/trainer_wait", 0.0), record.get("timing_s/rollout_wait", 0.0))
    return [
        f"reward: {record['reward/mean']:.3f}",
        f"accuracy: {100 * record.get('accuracy', 0.0):.1f}%",
        f"stale: {record.get('staleness/mean', 0.0):.2f}",
        f"waits: {waits[0]:.2f}s train, {waits[1]:.2f}s sample",
    ]


def next_commands(outcome: Mapping[str, Any], run_dir: str, prefix: str = "") -> list[str]:
    """What to do after a run, a line each; `run_dir` and the programs' `prefix` as people would
    type them."""
    lines = [f"run folder   {run_dir}"]
    if outcome["kind"] == "stopped":
        lines.append("go on        the same command again, with run.resume at auto")
    if outcome["checkpoint"] is not None:
        lines.append(f'try it       {prefix}braid generate {run_dir} --prompt "def "')
        lines.append(f"take it      {prefix}braid export {run_dir} --to FOLDER")
    lines.append(f"curves       {prefix}tensorboard --logdir {run_dir}/tensorboard")
    return lines


def failure_lines(failure: Mapping[str, Any]) -> list[str]:
    """What failed first, where, and the last words of that process."""
    lines = [str(failure["cause"])]
    where = [
        f"{name} {failure[name]}"
        for name in ("rank", "host", "phase", "step")
        if failure.get(name) is not None
    ]
    if where:
        lines.append("at " + ", ".join(where))
    if failure["last_lines"]:
        lines += ["last lines of that process:", *(f"  {line}" for line in failure["last_lines"])]
    if failure.get("log"):
        lines.append(f"its log: {failure['log']}")
    return lines
