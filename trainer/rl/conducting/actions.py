"""What the conductor wants done. Pure data: neither torch nor ray."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from trainer.rl.conducting.split import Split
from trainer.rl.messages import ChannelPlace, Join, Publish, ToRollout, ToTrainer
from trainer.rl.rewards.outcome import RewardRequest


@dataclass(frozen=True, kw_only=True)
class Actions:
    """Carried out in this order: persist, then everything else, each list in its own order."""

    persist: bool = False
    """Write the conductor's snapshot before any of the rest leaves."""

    to_trainer: tuple[ToTrainer, ...] = ()
    to_rollouts: Mapping[str, tuple[ToRollout, ...]] = field(default_factory=dict)
    """By the worker's name."""

    rewards: tuple[RewardRequest, ...] = ()
    """Judge these; the results go to `on_rewards`."""

    replace: tuple[str, ...] = ()
    """Workers to end and to start anew under another name. They count as lost already: no
    `rollout_lost` is told of them."""

    split: Split | None = None
    """Have so many train and so many sample, from the next version boundary on at which the places
    can change hands; or say `split_refused`. Those that give up their places for it count as there
    until `rollout_retired`."""

    events: tuple[Mapping[str, Any], ...] = ()
    """For events.jsonl, with `kind` and `step`; `time` is the caller's."""


class Draft:
    """Actions that are being put together."""

    def __init__(self) -> None:
        self.persist = False
        self.to_trainer: list[ToTrainer] = []
        self.rewards: list[RewardRequest] = []
        self.replace: list[str] = []
        self.split: Split | None = None
        self.events: list[Mapping[str, Any]] = []
        self._to_rollouts: dict[str, list[ToRollout]] = {}

    def tell(self, worker: str, *messages: ToRollout) -> None:
        """To one worker."""
        self._to_rollouts.setdefault(worker, []).extend(messages)

    def open_channel(self, place: ChannelPlace) -> None:
        """All its members shall open it: the trainers publish, the workers join."""
        self.to_trainer.append(Publish(channel=place))
        for rank, worker in enumerate(place.names[place.trainers :], start=place.trainers):
            self.tell(worker, Join(channel=place, rank=rank))

    def event(self, kind: str, step: int, **details: Any) -> None:
        """For events.jsonl."""
        self.events.append({"kind": kind, "step": step, **details})

    def done(self) -> Actions:
        """As they are now."""
        return Actions(
            persist=self.persist,
            to_trainer=tuple(self.to_trainer),
            to_rollouts={name: tuple(told) for name, told in self._to_rollouts.items()},
            rewards=tuple(self.rewards),
            replace=tuple(self.replace),
            split=self.split,
            events=tuple(self.events),
        )
