"""The workers that sample, as the conductor knows them. Pure data."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from trainer.rl.conducting.actions import Draft
from trainer.rl.messages import GiveUp


@dataclass(kw_only=True)
class Worker:
    """One that is up."""

    heard_s: float
    """When it last said anything."""

    version: int | None = None
    """Of its weights, as far as it told; None before it has those of the present trainers."""

    leases: dict[int, int] = field(default_factory=dict)
    """Numbers of the prompts that it answers, by lease."""


class Crew:
    """Workers by name."""

    def __init__(self) -> None:
        self._workers: dict[str, Worker] = {}

    def __contains__(self, name: str) -> bool:
        """Whether a worker is up."""
        return name in self._workers

    def __getitem__(self, name: str) -> Worker:
        """The worker."""
        return self._workers[name]

    def __iter__(self) -> Iterator[str]:
        """Names, in the order in which they came up."""
        return iter(self._workers)

    def __len__(self) -> int:
        """How many are up."""
        return len(self._workers)

    def add(self, name: str, now_s: float) -> None:
        """A worker came up."""
        self._workers[name] = Worker(heard_s=now_s)

    def remove(self, name: str) -> None:
        """A worker is gone."""
        del self._workers[name]

    def begin_anew(self, draft: Draft) -> None:
        """None of them has weights of the present trainers; all leases end."""
        for name, worker in self._workers.items():
            worker.version = None
            worker.leases.clear()
            draft.tell(name, GiveUp())

    def versions(self) -> dict[str, int | None]:
        """By name."""
        return {name: worker.version for name, worker in self._workers.items()}

    @property
    def oldest_version(self) -> int | None:
        """That a worker samples with; None where none samples."""
        known = [w.version for w in self._workers.values() if w.version is not None]
        return min(known, default=None)

    def end(self, numbers: list[int], draft: Draft) -> None:
        """End the leases of prompts whose leases the ledger has ended."""
        wanted = set(numbers)
        for name, worker in self._workers.items():
            for lease_id in [i for i, number in worker.leases.items() if number in wanted]:
                del worker.leases[lease_id]
                draft.tell(name, GiveUp(lease_ids=(lease_id,)))

    def silent(self, now_s: float, longest_s: float) -> list[str]:
        """Those that have said nothing for longer."""
        return [n for n, w in self._workers.items() if now_s - w.heard_s > longest_s]

    def by_load(self) -> list[str]:
        """Those with weights, the least busy first."""
        ready = [name for name, w in self._workers.items() if w.version is not None]
        return sorted(ready, key=lambda name: len(self._workers[name].leases))
