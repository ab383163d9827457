"""What the prompt ledger knows of each prompt, as plain data. Pure."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
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

    def holds_trained_answers(self, *, before: int) -> bool:
        """Whether a step before `before` has trained it and its answers are still there."""
        trained = self.state is State.TRAINED and not self.let_go
        return trained and self.step is not None and self.step < before

    def settled_before(self, step: int) -> bool:
        """Whether going back to version `step`, or to a later one, changes nothing of it."""
        if self.state is State.TRAINED:
            return self.step is not None and self.step < step
        return self.state is State.DROPPED and self.kept is not None and self.kept.newest <= step

    def to_plain(self, known: "Record | None" = None) -> dict[str, Any]:
        """JSON-able; without the answers that `known` has as well."""
        plain = {**vars(self), "state": self.state.value}
        if known is not None and known.kept is self.kept:
            del plain["kept"]
        elif self.kept is not None:
            plain["kept"] = dict(vars(self.kept))
        return plain

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> "Record":
        """Raises KeyError, TypeError or ValueError for what `to_plain` never gave."""
        kept = plain["kept"]
        given = dict(plain) | {
            "state": State(plain["state"]),
            "kept": None if kept is None else Kept(**kept),
        }
        return cls(**given)


class Records:
    """Prompts that were begun, by number. Most are trained and only wait for a checkpoint: those
    that are not are there without a look at the others."""

    def __init__(self, records: Iterable[Record] = ()) -> None:
        self._all: dict[int, Record] = {}
        self._open: dict[int, Record] = {}
        for record in records:
            self.put(record)

    def __iter__(self) -> Iterator[Record]:
        """All, as they are now."""
        return iter(list(self._all.values()))

    def __getitem__(self, number: int) -> Record:
        """That of a prompt."""
        return self._all[number]

    def get(self, number: int) -> Record | None:
        """None where there is none."""
        return self._all.get(number)

    @property
    def open(self) -> Collection[Record]:
        """Those that are due, leased or finished."""
        return self._open.values()

    def put(self, record: Record) -> Record:
        """Keep it instead of what was known of its prompt."""
        self._all[record.number] = record
        if record.state in _OPEN:
            self._open[record.number] = record
        else:
            self._open.pop(record.number, None)
        return record

    def remove(self, number: int) -> None:
        """Forget a prompt."""
        del self._all[number]
        self._open.pop(number, None)

    def by_number(self) -> dict[int, Record]:
        """A copy."""
        return dict(self._all)

    def to_plain(self, known: Mapping[int, Record] | None) -> dict[str, Any]:
        """JSON-able: all of them or, with `known`, what is not as it was then."""
        if known is None:
            return {"records": [record.to_plain() for _, record in sorted(self._all.items())]}
        changed = [r for n, r in sorted(self._all.items()) if known.get(n) is not r]
        return {
            "gone": sorted(known.keys() - self._all.keys()),
            "records": [record.to_plain(known.get(record.number)) for record in changed],
        }


_OPEN = (State.DUE, State.LEASED, State.FINISHED)


def merged(snapshot: Mapping[str, Any], changes: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The ledger's snapshot after changes to one, in their order; all once through JSON."""
    found = dict(snapshot)
    records = {record["number"]: record for record in snapshot["records"]}
    for change in changes:
        found |= change
        for number in found.pop("gone"):
            del records[number]
        for record in change["records"]:
            records[record["number"]] = records.get(record["number"], {}) | record
    return found | {"records": [record for _, record in sorted(records.items())]}
