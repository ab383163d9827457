"""Where a run keeps its files (README, "The run folder"), and its log of events."""

import errno
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from trainer.config import RunConfig


@dataclass(frozen=True)
class RunFolder:
    """Paths of one run."""

    root: Path

    @classmethod
    def of(cls, run: RunConfig) -> "RunFolder":
        """The folder that a recipe's `run` section names."""
        return cls(Path(run.dir).expanduser().absolute() / run.name)

    @property
    def recipe(self) -> Path:
        """The resolved recipe."""
        return self.root / "recipe.yaml"

    @property
    def info(self) -> Path:
        """Versions, commit, hosts and seed."""
        return self.root / "run.json"

    @property
    def metrics(self) -> Path:
        """A JSON line per step."""
        return self.root / "metrics.jsonl"

    @property
    def plans(self) -> Path:
        """A JSON line per step: the plan, predicted and measured terms."""
        return self.root / "plans.jsonl"

    @property
    def events(self) -> Path:
        """A JSON line per event."""
        return self.root / "events.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Folder of step folders, with the pointer `latest`."""
        return self.root / "checkpoints"

    @property
    def snapshots(self) -> Path:
        """Which snapshots in the hosts' memory are of this run."""
        return self.root / "snapshots.json"

    @property
    def rescued(self) -> Path:
        """Snapshots that were saved to disk after their driver had gone."""
        return self.root / "rescued"

    @property
    def rollbacks(self) -> Path:
        """Steps that were undone and are not to be trained on again."""
        return self.root / "rollbacks.json"

    @property
    def planted(self) -> Path:
        """A wrong gradient that a drill asks for."""
        return self.root / "planted.json"

    @property
    def tensorboard(self) -> Path:
        """TensorBoard event files."""
        return self.root / "tensorboard"

    @property
    def tokenizer(self) -> Path:
        """The tokenizer the run trains with, as a Hugging Face folder."""
        return self.root / "tokenizer"

    @property
    def exit(self) -> Path:
        """How the run ended."""
        return self.root / "exit.json"

    def log(self, role: str, rank: int) -> Path:
        """Output of one process."""
        return self.root / "logs" / f"{role}-{rank}.log"


def is_full(error: OSError) -> bool:
    """Whether it says that a disk, a quota or a limit on files leaves no room."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def append_line(path: Path, record: dict[str, Any], *, durable: bool = False) -> None:
    """Append one JSON line in a single write, so that lines of several processes do not mix; where
    it is to be `durable`, it is on the disk once this returns.

    Raises OSError where there is no room for it; nothing of it stays then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    line = (json.dumps(record, allow_nan=True) + "\n").encode()
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        written = os.write(descriptor, line)
        if written < len(line):
            end = os.lseek(descriptor, 0, os.SEEK_CUR)
            if os.fstat(descriptor).st_size == end:
                os.ftruncate(descriptor, end - written)
            raise OSError(errno.ENOSPC, "no space left for a whole line", str(path))
        if durable:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """What `append_line` has written there so far, oldest first; nothing where there is no file.

    A last line without its end is left out: it is on its way, or a kill cut it off. Raises
    ValueError for any other that is not JSON.
    """
    if not path.exists():
        return []
    whole = path.read_bytes().rpartition(b"\n")[0]
    return [json.loads(line) for line in whole.splitlines()]


def write_atomically(path: Path, text: str) -> None:
    """Replace `path` as a whole: readers see the old or the new text, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{uuid4().hex}")
    with aside.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)


def append_event(log: Path, *, now_s: float, kind: str, step: int, **details: Any) -> None:
    """Append to events.jsonl. `now_s` is seconds since the epoch."""
    append_line(log, {"time": now_s, "kind": kind, "step": step, **details})
