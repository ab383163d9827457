"""Whether processes are still there, and have nothing to do."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, RayError

_ASK_EVERY_S = 0.5

_SILENT_S = 20.0
"""An idle process answers at once; one that needs this long is stopped, or its host is gone."""


@dataclass
class _Question:
    asked_s: float
    ref: "ray.ObjectRef[Any]"
    answered: bool = False


class IdleWatch:
    """Asks idle processes now and then, without waiting. Used by the driver's main thread."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._questions: dict[int, _Question] = {}

    def gone(self, actors: Mapping[int, Any]) -> list[int]:
        """Numbers of those that are dead or stopped, of the idle processes there are now."""
        now_s = self._clock()
        self._questions = {n: q for n, q in self._questions.items() if n in actors}
        for number, actor in actors.items():
            own = self._questions.get(number)
            if own is None or (own.answered and now_s - own.asked_s >= _ASK_EVERY_S):
                self._questions[number] = _Question(now_s, actor.process.remote())
        return [n for n, question in self._questions.items() if self._is_gone(question, now_s)]

    def _is_gone(self, question: _Question, now_s: float) -> bool:
        if question.answered:
            return False
        if not _arrived(question.ref):
            return now_s - question.asked_s > _SILENT_S
        question.answered = True
        try:
            ray.get(question.ref)
        except ActorUnavailableError:
            # A connection that may heal: asked again.
            return False
        except RayError:
            return True
        return False


def unanswering(actors: Mapping[int, Any], *, within_s: float) -> list[int]:
    """Numbers of those that are dead, or do not answer within `within_s`. Waits no longer than it
    takes all to answer."""
    refs = {actor.process.remote(): number for number, actor in actors.items()}
    if not refs:
        return []
    done, late = ray.wait(list(refs), num_returns=len(refs), timeout=within_s)
    return sorted(refs[ref] for ref in [*late, *(ref for ref in done if not _answers(ref))])


def blocked(actors: Mapping[int, Any], *, within_s: float) -> list[int]:
    """Numbers of those that have not ended their work after `within_s`."""
    refs = {actor.watch.remote(): number for number, actor in actors.items()}
    if not refs:
        return []
    _, late = ray.wait(list(refs), num_returns=len(refs), timeout=within_s)
    return sorted(refs[ref] for ref in late)


def _arrived(ref: "ray.ObjectRef[Any]") -> bool:
    done, _ = ray.wait([ref], timeout=0)
    return bool(done)


def _answers(ref: "ray.ObjectRef[Any]") -> bool:
    try:
        ray.get(ref)
    except RayError:
        return False
    return True
