"""Rollbacks of a run, as its folder tells them (`rollbacks.json`), and states that they rule out.

Written before training goes on, so that whatever happens next, the run does not fall back into what
it has left.
"""

import json
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from torch.distributed import ProcessGroup

from comms.config import RankEnvironment
from comms.groups import broadcast_bytes
from trainer.checkpoint.agreement import RanksFailed
from trainer.checkpoint.filling import BlockReader, Source
from trainer.checkpoint.manifest import Manifest
from trainer.checkpoint.share import State
from trainer.errors import DataError
from trainer.numeric.jumps import Rollback, abandoned_by, decode, encode
from trainer.run_folder import RunFolder, write_atomically


def read_rollbacks(path: Path) -> tuple[Rollback, ...]:
    """Raises DataError where the file is not one of ours."""
    if not path.is_file():
        return ()
    try:
        return decode(json.loads(path.read_text()))
    except ValueError as error:
        raise DataError(
            f"{path} cannot be read: {error}. It says which steps must not be trained on again; "
            "restore it, or write [] to train on all of them"
        ) from error


def write_rollbacks(path: Path, rollbacks: Iterable[Rollback]) -> None:
    """Replace the file as a whole."""
    write_atomically(path, json.dumps(encode(rollbacks)) + "\n")


def agreed_rollbacks(
    folder: RunFolder, environment: RankEnvironment, group: ProcessGroup
) -> tuple[Rollback, ...]:
    """What rank 0 reads. All ranks call it."""
    payload = b""
    if environment.rank == 0:
        payload = json.dumps(encode(read_rollbacks(folder.rollbacks))).encode()
    return decode(json.loads(broadcast_bytes(payload, group=group)))


def joined(first: Iterable[Rollback], second: Iterable[Rollback]) -> tuple[Rollback, ...]:
    """All of both, each once, in order."""
    return tuple(sorted({*first, *second}))


class Admitted:
    """A `Source` that is passed over where a rollback left it behind."""

    def __init__(self, source: Source, rollbacks: Sequence[Rollback]) -> None:
        self._source = source
        self._rollbacks = rollbacks
        self.path = source.path
        self.place = source.place

    def prepare(self, state: State, group: ProcessGroup | None) -> Manifest:
        """As the source. Raises RanksFailed where the run went back behind it."""
        manifest = self._source.prepare(state, group)
        made = decode(manifest.meta.get("numeric", {}).get("rollbacks", []))
        left = abandoned_by(manifest.step, made, self._rollbacks)
        if left is not None:
            raise RanksFailed(
                f"the run went back from step {left.from_step} to step {left.to_step}, and left "
                "this behind"
            )
        return manifest

    def opened(self) -> AbstractContextManager[BlockReader]:
        """What `prepare` found."""
        return self._source.opened()
