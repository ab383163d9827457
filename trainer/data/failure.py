"""Why tokenising ended early, left beside the tokens for everyone who waits for them.

Runs that pack the same tokens differently share a folder, and each has a file of its own: a
document too long for one of them may fit another.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from trainer.data.cache import written_aside
from trainer.errors import BraidError, DataError, ExitCode, InfrastructureError, ResourceError

KINDS: dict[ExitCode, type[BraidError]] = {
    ExitCode.DATA: DataError,
    ExitCode.RESOURCES: ResourceError,
    ExitCode.INFRASTRUCTURE: InfrastructureError,
}


@dataclass(frozen=True)
class Failure:
    """The error of a tokenising process."""

    code: int
    message: str

    @classmethod
    def of(cls, error: BraidError) -> "Failure":
        """The failure that `error` ended the process with."""
        return cls(int(error.exit_code), str(error))

    def error(self) -> BraidError:
        """The error again, for this process to raise."""
        kind = KINDS.get(ExitCode(self.code), InfrastructureError)
        return kind(self.message)

    def encode(self) -> str:
        """One JSON line."""
        return json.dumps(asdict(self))

    @classmethod
    def decode(cls, text: str) -> "Failure":
        """Read `encode`'s line."""
        return cls(**json.loads(text))

    def leave(self, path: Path) -> None:
        """Put it into the file `path`."""
        with written_aside(path) as file:
            file.write(self.encode().encode())


def found_failure(path: Path) -> Failure | None:
    """The failure that was left in the file `path`."""
    try:
        return Failure.decode(path.read_text())
    except FileNotFoundError:
        return None


def forget_failure(path: Path) -> None:
    """Remove what an earlier run left: it may no longer hold."""
    path.unlink(missing_ok=True)
