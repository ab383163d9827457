"""The prompt ledger: which prompt is where, so that each is trained exactly once. Pure.

Prompts are numbered in the order of the run, of which the task's order is a function. A prompt is
leased to a worker, finished, taken by a step and trained with that step's commit, or dropped. The
ledger decides nothing about staleness: `trainer.rl.staleness` does, from `under_way`. One thread
calls it; time is an argument.

Guarantees, each asserted in tests/trainer/rl/test_ledger.py:
- in the steps that were not undone, each prompt is trained exactly once, whatever dies;
- a lost worker's prompts are due again, with the tokens that it had told of, and what it says later
  is refused;
- prompts are trained with the commit of their step and not before; where training goes back to
  version c, the prompts of the steps from c on are due again: with their answers, but for those
  that versions after c drew a token of, and those that were let go of;
- a snapshot, once through JSON, restores the ledger, at its own step or at any earlier one whose
  answers are kept; leases do not survive it; so do an earlier one and what has changed since;
- numbers are leased in ascending order, first those that go on; with a staleness of zero, steps
  train the same prompts in the same order whatever finishes when and whatever is lost.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from trainer.rl.ledger_records import Kept, Lease, Record, Records, State
from trainer.rl.staleness import UnderWay

FORMAT = 1


class StaleAnswerError(ValueError):
    """A worker told of tokens that weights drew which it cannot have had."""


class PromptLedger:
    """Of one run of `prompts` prompts; None for a run that ends by its steps."""

    def __init__(self, *, prompts: int | None = None, lease_s: float = 600.0) -> None:
        self.prompts = prompts
        self.lease_s = lease_s
        self._records = Records()
        self._settled_below = 0
        self._settled: set[int] = set()
        self._first_number = 0
        self._next_lease = 0
        self._leases: dict[int, int] = {}
        self.next_step = 0
        """The step that takes prompts next."""

        self.committed = 0
        """Steps that are committed: the trainer's version."""

        self.kept_from = 0
        """The earliest version that training can go back to."""

    @property
    def running(self) -> int:
        """Prompts that are leased."""
        return len(self._leases)

    @property
    def exhausted(self) -> bool:
        """Whether no further prompt can begin."""
        waiting = any(r.state is State.DUE and r.version is None for r in self._records.open)
        return self.prompts is not None and self._first_number >= self.prompts and not waiting

    def counts(self) -> dict[str, int]:
        """Prompts by state, and those settled for good."""
        found = Counter(record.state.value for record in self._records)
        return {**found, "forgotten": self._settled_below + len(self._settled)}

    def under_way(self) -> list[UnderWay]:
        """Prompts that have begun and are in no step."""
        return [record.under_way() for record in self._records.open if record.begun]

    def finished(self) -> list[Record]:
        """Prompts whose answers are complete and in no step, by number."""
        found = [r for r in self._records.open if r.state is State.FINISHED]
        return sorted(found, key=lambda record: record.number)

    def lease(self, worker: str, *, version: int, now_s: float, room: int) -> Lease | None:
        """The next prompt for a worker whose weights are `version`; None where there is none.

        Prompts that go on come first and need no room, as they count against the bound already.
        They go to workers whose weights are not older than theirs. `room` is how many may begin.
        """
        record = self._next(version, room)
        if record is None:
            return None
        lease_id, self._next_lease = self._next_lease, self._next_lease + 1
        self._leases[lease_id] = record.number
        self._first_number = max(self._first_number, record.number + 1)
        self._put(
            record,
            state=State.LEASED,
            version=version if record.version is None else record.version,
            lease_id=lease_id,
            worker=worker,
            expires_s=now_s + self.lease_s,
        )
        return Lease(number=record.number, lease_id=lease_id, worker=worker, kept=record.kept)

    def report(self, lease_id: int, kept: Kept | None, *, now_s: float) -> bool:
        """Keep the tokens so far, and the lease; False where it is void: the worker must stop."""
        record = self._leased(lease_id, kept)
        if record is None:
            return False
        self._put(record, kept=kept or record.kept, expires_s=now_s + self.lease_s)
        return True

    def finish(self, lease_id: int, kept: Kept) -> Record | None:
        """Take the finished answers; None, and nothing else, where the lease is void."""
        record = self._leased(lease_id, kept)
        if record is None:
            return None
        self._end_lease(record)
        done = {"state": State.FINISHED, "version": kept.oldest, "kept": kept, "lease_id": None}
        return self._put(record, **done)

    def lose(self, worker: str) -> list[int]:
        """Re-queue the prompts of a lost worker; their numbers."""
        return self._requeue(r for r in self._leases_held() if r.worker == worker)

    def expire(self, now_s: float) -> list[int]:
        """Re-queue the prompts whose workers have told nothing for `lease_s`; their numbers."""
        return self._requeue(r for r in self._leases_held() if r.expires_s < now_s)

    def drop(self, number: int, reason: str) -> None:
        """Settle a finished prompt without training it, such as one whose rewards are all equal;
        its answers are let go of."""
        record = self._expect(number, State.FINISHED, "dropped").lightened()
        self._put(record, state=State.DROPPED, step=self.next_step, reason=reason)

    def take(self, numbers: Sequence[int]) -> tuple[int, list[Record]]:
        """Give finished prompts to the next step: its number, and the prompts in this order."""
        if len(set(numbers)) != len(numbers):
            raise ValueError(f"the numbers {list(numbers)} name a prompt twice; take each once")
        records = [self._expect(number, State.FINISHED, "taken") for number in numbers]
        step = self.next_step
        self.next_step += 1
        return step, [self._put(r, state=State.TAKEN, step=step) for r in records]

    def commit(self, step: int) -> None:
        """Mark the prompts of a step as trained, once all ranks have made its update."""
        if step != self.committed or step >= self.next_step:
            raise ValueError(
                f"step {step} cannot be committed after {self.committed} commits and "
                f"{self.next_step} steps taken; commit each step once, in order"
            )
        self.committed += 1
        for record in self._records:
            if record.state is State.TAKEN and record.step == step:
                self._put(record, state=State.TRAINED)

    def forget(self, step: int) -> None:
        """Let go of what training back to before version `step` would need. Called once a
        checkpoint of version `step` is durable."""
        if step > self.committed:
            raise ValueError(
                f"version {step} is not committed, of which there are {self.committed}; forget "
                "what lies before a version that is saved"
            )
        self.kept_from = max(self.kept_from, step)
        for record in self._records:
            if record.settled_before(step):
                self._records.remove(record.number)
                self._settled.add(record.number)
        while self._settled_below in self._settled:
            self._settled.remove(self._settled_below)
            self._settled_below += 1

    def lighten(self, step: int) -> None:
        """Let go of the answers that steps before `step` have trained. Training that goes back to
        before them has them sampled again."""
        for record in self._records:
            if record.holds_trained_answers(before=step):
                self._records.put(record.lightened())

    def rewind(self, step: int) -> None:
        """Follow the trainer back to version `step`. Every lease ends; workers load anew."""
        if not self.kept_from <= step <= self.next_step:
            raise ValueError(
                f"version {step} cannot be gone back to: answers are kept from version "
                f"{self.kept_from} on, and step {self.next_step} is next; restore the ledger of "
                "the checkpoint instead"
            )
        self._leases.clear()
        self._records = Records(record.undone(step) for record in self._records)
        self.next_step = self.committed = step

    @property
    def records(self) -> dict[int, Record]:
        """All that is known of prompts now; for `snapshot`."""
        return self._records.by_number()

    def snapshot(self, known: Mapping[int, Record] | None = None) -> dict[str, Any]:
        """All of it as JSON-able plain data. With `known`, what `records` was at an earlier one,
        only what has changed since, for `trainer.rl.ledger_records.merged`."""
        return {
            "format": FORMAT,
            "prompts": self.prompts,
            "first_number": self._first_number,
            "next_lease": self._next_lease,
            "next_step": self.next_step,
            "committed": self.committed,
            "kept_from": self.kept_from,
            "settled_below": self._settled_below,
            "settled": sorted(self._settled),
            **self._records.to_plain(known),
        }

    @classmethod
    def restore(
        cls, plain: Mapping[str, Any], *, step: int, lease_s: float = 600.0
    ) -> "PromptLedger":
        """The ledger of a snapshot, beside a trainer that is restored at version `step`.

        Raises ValueError where the data is not of a snapshot, or does not reach that version.
        """
        try:
            if plain["format"] != FORMAT:
                raise ValueError(f"format {plain['format']!r} is not {FORMAT}")
            ledger = cls(prompts=plain["prompts"], lease_s=lease_s)
            ledger._records = Records(Record.from_plain(r) for r in plain["records"])
            ledger._settled = set(plain["settled"])
            ledger._settled_below = plain["settled_below"]
            ledger._first_number, ledger._next_lease = plain["first_number"], plain["next_lease"]
            ledger.next_step, ledger.committed = plain["next_step"], plain["committed"]
            ledger.kept_from = plain["kept_from"]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"the prompt ledger cannot be restored ({error!r}); use another checkpoint"
            ) from error
        ledger._check()
        ledger.rewind(step)
        return ledger

    def _check(self) -> None:
        """Every number below the first that never began is accounted for once."""
        known = self._settled_below + len(self._settled) + len(self.records)
        numbers = self._settled | self.records.keys() | set(range(self._settled_below))
        if known != self._first_number or numbers != set(range(self._first_number)):
            raise ValueError(
                f"the prompt ledger has {known} prompts of {self._first_number}; it is damaged, "
                "use another checkpoint"
            )

    def _next(self, version: int, room: int) -> Record | None:
        """What to lease: prompts that go on, then those that begin again, then a new one."""
        due = [r for r in self._records.open if r.state is State.DUE]
        going_on = [r for r in due if r.version is not None and r.version <= version]
        if going_on:
            return min(going_on, key=lambda r: (r.version, r.number))
        if room <= 0:
            return None
        again = [r for r in due if r.version is None]
        if again:
            return min(again, key=lambda r: r.number)
        if self.prompts is not None and self._first_number >= self.prompts:
            return None
        return Record(number=self._first_number, state=State.DUE)

    def _leased(self, lease_id: int, kept: Kept | None) -> Record | None:
        number = self._leases.get(lease_id)
        record = None if number is None else self._records[number]
        if record is not None and kept is not None:
            assert record.version is not None
            if kept.oldest < record.version or kept.newest > self.next_step:
                raise StaleAnswerError(
                    f"worker {record.worker} answered prompt {number} with weights of the versions "
                    f"{kept.oldest} to {kept.newest}, but began it with {record.version} and step "
                    f"{self.next_step} is next; end its lease and let it load its weights again"
                )
        return record

    def _leases_held(self) -> list[Record]:
        return [self._records[number] for number in self._leases.values()]

    def _requeue(self, records: Iterable[Record]) -> list[int]:
        lost = sorted(records, key=lambda record: record.number)
        for record in lost:
            self._end_lease(record)
            self._records.put(record.due_again())
        return [record.number for record in lost]

    def _end_lease(self, record: Record) -> None:
        assert record.lease_id is not None
        del self._leases[record.lease_id]

    def _expect(self, number: int, state: State, verb: str) -> Record:
        record = self._records.get(number)
        if record is None or record.state is not state:
            found = "not known or settled" if record is None else record.state.value
            raise ValueError(f"prompt {number} cannot be {verb}: it is {found}, not {state.value}")
        return record

    def _put(self, record: Record, **changes: Any) -> Record:
        return self._records.put(replace(record, **changes))
