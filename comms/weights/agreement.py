"""All ranks of a channel do the same, or nobody does: decisions over a shared store.

Each rank leaves its word in the store; rank 0 decides when all are there. Whoever fails, or has
waited to the deadline, decides against. The first decision stands, as the store writes it only
where there is none, and everybody reads it: no rank takes part in what another gave up.

Guarantees, each asserted in tests/comms/weights/test_agreement.py:
- all ranks that read a decision read the same one;
- where a rank says no or nothing, the decision is no, and every rank's error names that rank and
  quotes it;
- nobody waits longer than the deadline and the grace for reports.
"""

import contextlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta

import torch.distributed as dist

_LONGEST_PAUSE_S = 0.02
"""Between two looks at the store, where waiting in it would not do: it waits for all keys or none,
and warns where they do not come."""

_YES = "yes"


class WeightTransferError(RuntimeError):
    """A version of the weights did not reach all. Every rank keeps what it had."""

    def __init__(
        self, message: str, *, culprits: Sequence[int], reasons: Mapping[int, str]
    ) -> None:
        super().__init__(message)
        self.culprits = tuple(culprits)
        """Ranks of the channel that failed or said nothing."""

        self.reasons = dict(reasons)
        """What each rank reported of itself."""


def decide_against(store: dist.Store, subject: str, reason: str) -> None:
    """Have all ranks give `subject` up, unless it is decided. Any process may call it, with a store
    client of its own that has the channel's prefix."""
    store.compare_set(f"{subject}/decision", "", json.dumps({"text": reason}))


class Deadline:
    """A point in time after which nobody waits."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds = seconds
        self._clock = clock
        self._at_s = clock() + seconds

    @property
    def left_s(self) -> float:
        """0 where it has passed."""
        return max(0.0, self._at_s - self._clock())


class Problem(RuntimeError):
    """What stopped this rank. `blames` is the rank that it thinks is at fault."""

    def __init__(self, text: str, *, blames: int) -> None:
        super().__init__(text)
        self.blames = blames


class Agreement:
    """The decisions of one channel. All its ranks make one, with the same store and prefix, and
    then decide the same things in the same order. The store client must be used by nothing else
    at the time: a waiting client answers nobody.
    """

    def __init__(
        self, store: dist.Store, *, rank: int, names: Sequence[str], grace_s: float = 2.0
    ) -> None:
        self._store = store
        self._rank = rank
        self._names = names
        self._grace_s = grace_s

    @property
    def ranks(self) -> int:
        """How many decide."""
        return len(self._names)

    def forget(self, subject: str) -> None:
        """Remove what was said about a subject that all ranks have long read. Rank 0 calls it."""
        for key in ("decision", *range(self.ranks)):
            self._store.delete_key(f"{subject}/{key}")

    def settle(
        self, subject: str, problem: Problem | None, deadline: Deadline, *, what: str
    ) -> None:
        """Return once all ranks have said yes to `subject`, a key that is used once.

        Raises WeightTransferError, on every rank, where one has a `problem` or does not answer
        before the deadline. `what` says what then did not happen.
        """
        try:
            if problem is not None:
                decision = self._refuse(subject, problem)
            elif self._say(subject, {}) and self._rank == 0:
                decision = self._collect(subject, deadline)
            else:
                decision = self._await(subject, deadline)
            if decision == _YES:
                return
            failure = self._failure(subject, decision, what)
        except dist.DistError as error:
            own = "" if problem is None else f" after {self._names[self._rank]}: {problem}"
            raise WeightTransferError(
                f"{what}: the store of the channel is out of reach{own} ({error}); open the "
                "channel anew once the process that keeps it is back",
                culprits=(),
                reasons={} if problem is None else {self._rank: str(problem)},
            ) from error
        raise failure

    def refuse(self, subject: str, problem: Problem) -> None:
        """Decide against, before others find out what this rank will do about its problem; then
        call `settle`, which raises."""
        with contextlib.suppress(dist.DistError):
            self._refuse(subject, problem)

    def _refuse(self, subject: str, problem: Problem) -> str:
        # Decided first: rank 0 decides for it as soon as all have said a word.
        word: dict[str, str | int] = {"text": str(problem), "blames": problem.blames}
        decision = self._decide(subject, word)
        self._say(subject, word)
        return decision

    def _say(self, subject: str, word: Mapping[str, str | int]) -> bool:
        self._store.set(f"{subject}/{self._rank}", json.dumps(word))
        return True

    def _decide(self, subject: str, word: Mapping[str, str | int]) -> str:
        """The decision that stands: this one, or one that was there before. An empty word is a
        yes."""
        decision = json.dumps(word) if word else _YES
        return self._store.compare_set(f"{subject}/decision", "", decision).decode()

    def _collect(self, subject: str, deadline: Deadline) -> str:
        keys = [f"{subject}/{rank}" for rank in range(self.ranks)]
        if self._seen(keys, deadline, unless=f"{subject}/decision"):
            return self._decide(subject, {})
        return self._decide(subject, {"text": f"not all answered within {deadline.seconds:g} s"})

    def _await(self, subject: str, deadline: Deadline) -> str:
        try:
            # A store takes whole milliseconds, and 0 as for ever.
            left = timedelta(milliseconds=max(1, round(1000 * deadline.left_s)))
            self._store.wait([f"{subject}/decision"], left)
        except dist.DistStoreError:
            return self._decide(subject, {"text": f"no decision within {deadline.seconds:g} s"})
        return self._store.get(f"{subject}/decision").decode()

    def _seen(self, keys: list[str], deadline: Deadline, unless: str = "") -> bool:
        """Whether all keys are there, before the deadline and before the key `unless`."""
        pause_s = 0.0005
        while not self._store.check(keys):
            if deadline.left_s <= 0.0 or (unless and self._store.check([unless])):
                return False
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        return True

    def _failure(self, subject: str, decision: str, what: str) -> WeightTransferError:
        """Who is to blame: those that said nothing, then those that failed by themselves, then
        the one that the first to refuse blames."""
        grace, first = Deadline(self._grace_s), json.loads(decision)
        words = {rank: self._word(f"{subject}/{rank}", grace) for rank in range(self.ranks)}
        silent = [rank for rank, word in words.items() if word is None]
        problems = {rank: word for rank, word in words.items() if word}
        own = [rank for rank, word in problems.items() if word["blames"] == rank]
        culprits = sorted({*silent, *own}) or ([int(first["blames"])] if "blames" in first else [])
        told = [f"{self._names[rank]} {self._told(rank, words[rank])}" for rank in culprits]
        others = [
            f"{self._names[rank]}: {word['text']}"
            for rank, word in problems.items()
            if rank not in own
        ]
        also = f" ({'; '.join(others)})" if others else ""
        return WeightTransferError(
            f"{what}: {'; '.join(told) or first['text']}{also}",
            culprits=culprits,
            reasons={rank: str(word["text"]) for rank, word in problems.items()},
        )

    def _told(self, rank: int, word: Mapping[str, str | int] | None) -> str:
        if word is None:
            return "said nothing"
        if word.get("blames") == rank:
            return f"says: {word['text']}"
        return "is at fault"

    def _word(self, key: str, deadline: Deadline) -> dict[str, str | int] | None:
        """What a rank said; None where it says nothing."""
        return json.loads(self._store.get(key)) if self._seen([key], deadline) else None
