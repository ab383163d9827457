"""What the prompt ledger knows of each prompt, as plain data. Pure."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any

from trainer.rl.staleness import UnderWay


class State(StrEnum):
    """Where a prompt is."""

    DUE = "due"
    """Waits for a worker; with tokens if one was lost that had drawn some."""

    LEASED = "leased"
    FINISHED = "finished"
    TAKEN = "taken"
    """In a step that is not committed."""

    TRAINED = "trained"
    DROPPED = "dropped"
    """Judged to teach nothing; never trained."""


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What is there of the answers to a prompt."""

    payload: Mapping[str, Any]
    """The answers and whatever their environment needs to go on, JSON-able; never looked at."""

    oldest: int
    """Version of the weights that drew the oldest token."""

    newest: int

    def __post_init__(self) -> None:
        if self.oldest > self.newest:
            raise ValueError(
                f"oldest={self.oldest} is above newest={self.newest}; give the least and the "
                "greatest version of the tokens"
            )


@dataclass(frozen=True, kw_only=True)
class Lease:
    """A worker's right to answer one prompt."""

    number: int
    """The prompt's place in the order of all prompts of the run."""

    lease_id: int
    """Never used again. Whatever is told under another one is refused."""

    worker: str
    kept: Kept | None
    """Tokens to go on from."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """A prompt that was begun, until it is settled for good."""

    number: int
    state: State
    version: int | None = None
    """The oldest that drew a token, or may have; None where none is kept."""

    kept: Kept | None = None
    lease_id: int | None = None
    worker: str = ""
    expires_s: float = 0.0
    step: int | None = None
    """That took it, or that was next when it was dropped."""

    reason: str = ""
    """Why it was dropped."""

    losses: int = 0
    """Times that a worker was lost with it."""

    let_go: bool = False
    """Whether the payload of `kept` is gone, as nothing should need it again."""

    @property
    def begun(self) -> bool:
        """Whether it counts against the bound on staleness."""
        return self.version is not None and self.state in (
            State.DUE,
            State.LEASED,
            State.FINISHED,
        )

    def under_way(self) -> UnderWay:
        """For the decisions of `trainer.rl.staleness`."""
        assert self.version is not None
        return UnderWay(self.number, self.version, self.state is State.FINISHED)

    def due_again(self) -> "Record":
        """Without its worker, with the tokens that it had told of."""
        return replace(
            self,
            state=State.DUE,
            lease_id=None,
            worker="",
            version=self.kept.oldest if self.kept else None,
            losses=self.losses + (self.state is State.LEASED),
        )

    def undone(self, step: int) -> "Record":
        """After training went back to version `step`: without what later versions drew."""
        if self.kept is not None and self.kept.newest > step:
            return self._afresh()
        if self.state is State.LEASED:
            return self.due_again()
        if self.step is not None and self.state in (State.TAKEN, State.TRAINED):
            # The trainer's version is what counts: its step may be done and its commit not told.
            if self.step < step:
                return replace(self, state=State.TRAINED)
            if self.let_go:
                return self._afresh()
            return replace(self, state=State.FINISHED, step=None)
        return self

    def lightened(self) -> "Record":
        """Without the answers: what goes back to them begins again."""
        if self.kept is None:
            return self
        return replace(self, kept=replace(self.kept, payload={}), let_go=True)

    def _afresh(self) -> "Record":
        return Record(number=self.number, state=State.DUE, losses=self.losses)

    def settled_before(self, step: int) -> bool:
        """Whether going back to version `step`, or to a later one, changes nothing of it."""
        if self.state is State.TRAINED:
            return self.step is not None and self.step < step
        return self.state is State.DROPPED and self.kept is not None and self.kept.newest <= step

    def to_plain(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self) | {"state": self.state.value}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> "Record":
        """Raises KeyError, TypeError or ValueError for what `to_plain` never gave."""
        kept = plain["kept"]
        given = dict(plain) | {
            "state": State(plain["state"]),
            "kept": None if kept is None else Kept(**kept),
        }
        return cls(**given)
