"""The driver's end of the messages to and from one actor."""

from collections.abc import Collection
from typing import Any, Generic, TypeVar

import ray
from ray.exceptions import ActorUnavailableError

In = TypeVar("In")
Out = TypeVar("Out")

LONGEST_POLL_S = 2.0
"""A question for messages is answered as soon as there is one, or after this long."""


class Line(Generic[Out, In]):
    """Sends and collects without waiting: at most one call of each kind is under way, which keeps
    the order, and one whose answer was lost is made again (see cluster/post.py)."""

    def __init__(self, actor: Any, work: int = 0) -> None:
        self._actor = actor
        self._work = work
        self._due: list[Out] = []
        self._sent = 0
        self._received = 0
        self._delivering: ray.ObjectRef[Any] | None = None
        self._under_way = 0
        self._collecting: ray.ObjectRef[Any] | None = None

    @property
    def refs(self) -> "list[ray.ObjectRef[Any]]":
        """What to wait for; asks the actor where it was not asked."""
        if self._collecting is None:
            self._collecting = self._actor.collect.remote(
                self._work, self._received, LONGEST_POLL_S
            )
        asked = [self._collecting]
        return asked if self._delivering is None else [*asked, self._delivering]

    def send(self, *messages: Out) -> None:
        """Never waits."""
        self._due.extend(messages)
        self._hand_over()

    def take(self, done: "Collection[ray.ObjectRef[Any]]") -> tuple[In, ...]:
        """Messages in the answers that have come. Raises RayError where the actor has ended."""
        if self._delivering is not None and self._delivering in done:
            self._delivered(self._delivering)
        if self._collecting is None or self._collecting not in done:
            return ()
        asked, self._collecting = self._collecting, None
        try:
            found: tuple[In, ...] = ray.get(asked)
        except ActorUnavailableError:
            return ()
        self._received += len(found)
        return found

    def _delivered(self, call: "ray.ObjectRef[Any]") -> None:
        self._delivering = None
        try:
            ray.get(call)
        except ActorUnavailableError:
            self._under_way = 0
        else:
            del self._due[: self._under_way]
            self._sent += self._under_way
            self._under_way = 0
        self._hand_over()

    def _hand_over(self) -> None:
        if self._delivering is not None or not self._due:
            return
        self._under_way = len(self._due)
        self._delivering = self._actor.deliver.remote(self._work, self._sent, tuple(self._due))
