"""What the parts of a run by rewards tell each other, as plain data. Neither torch nor ray.

Three roles: ranks that train, workers that sample, and one conductor that has the ledger of prompts
and the rewards. Trainers and workers know only their mailboxes: what comes in and what goes out.
Version v of the weights is what v steps by rewards have made; step v trains it into v + 1.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from trainer.rl.ledger_records import Kept


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One episode to train on. All arrays have one entry per token, prompt and observations
    included; where `loss_mask` is 0 nothing was sampled, and values are not read."""

    tokens: NDArray[np.int32]
    loss_mask: NDArray[np.int8]
    """1 where the token was sampled."""

    log_probs: NDArray[np.float32]
    """Of the distribution that was sampled from."""

    model_log_probs: NDArray[np.float32]
    """Of the model, without temperature, top-k and top-p."""

    versions: NDArray[np.int32]
    """Of the weights that drew the token; -1 where none was drawn."""

    advantage: float
    reward: float
    group: int
    """Number of its prompt."""

    reference_log_probs: NDArray[np.float32] | None = None
    """Under the reference model, where a distance to it is wanted."""

    routing: NDArray[np.int16] | None = None
    """Experts [tokens - 1, mixture layers, k] that each token visited, for replay in training."""

    @property
    def num_tokens(self) -> int:
        """Prompt, observations and sampled tokens."""
        return len(self.tokens)


@dataclass(frozen=True, kw_only=True, slots=True)
class ChannelPlace:
    """Where a channel for weights is opened, and by whom: first all ranks that train, in order,
    then the workers."""

    host: str
    port: int
    prefix: str
    names: tuple[str, ...]
    trainers: int


# To the ranks that train; the first of them hands it on to the others.


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainOn:
    """The batch of step `version`."""

    version: int
    samples: tuple[Sample, ...]
    pairs: tuple[tuple[int, int], ...] = ()
    """(chosen, rejected) places in `samples`, for objectives that learn from preferences."""

    figures: Mapping[str, float] = field(default_factory=dict)
    """What the conductor knows of this step, for the metrics: `reward/mean`, `staleness/max`, …"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Publish:
    """Open this channel, give the weights as they are, and those of each step from then on."""

    channel: ChannelPlace


ToTrainer: TypeAlias = TrainOn | Publish


# From the first rank that trains.


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainerReady:
    """All ranks have weights of `version` and wait for its batch: at the start, and again after
    every recovery, when it may be an earlier one."""

    version: int
    trainers: int
    """How many ranks train."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Committed:
    """Step `version` is done: the weights are those of `version` + 1."""

    version: int
    saved: int | None
    """The newest version that a checkpoint on disk has; None before the first."""

    trained_s: float
    """Seconds that the step took, waiting for its batch not included."""

    waited_s: float
    """Seconds that training waited for the batch."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Published:
    """All workers of the channel have `version`."""

    version: int
    sent_bytes: int
    seconds: Mapping[str, float]
    """Per part: pack, wire, agree, total."""

    prefix: str = ""
    """Of the channel; empty for the newest one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishFailed:
    """No worker has `version`; training goes on and waits for another `Publish`."""

    version: int
    reason: str
    culprits: tuple[str, ...]
    """Names, as in the channel's place, of those that failed."""

    prefix: str = ""
    """Of the channel; empty for the newest one."""


FromTrainer: TypeAlias = TrainerReady | Committed | Published | PublishFailed


# To a worker that samples.


@dataclass(frozen=True, kw_only=True, slots=True)
class Join:
    """Open this channel as its member `rank` and take every version that it brings."""

    channel: ChannelPlace
    rank: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """Sample the answers to a prompt."""

    number: int
    """The prompt's place in the order of the run, of which task and seeds are functions."""

    lease_id: int
    kept: Kept | None
    """What another worker had sampled already."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GiveUp:
    """Stop these; all of them where none is named."""

    lease_ids: tuple[int, ...] = ()


ToRollout: TypeAlias = Join | Answer | GiveUp


# From a worker that samples.


@dataclass(frozen=True, kw_only=True, slots=True)
class Under:
    """Tokens so far; told now and then, so that little is lost with the worker."""

    lease_id: int
    kept: Kept


@dataclass(frozen=True, kw_only=True, slots=True)
class Answered:
    """All samples of a prompt are complete."""

    lease_id: int
    kept: Kept


@dataclass(frozen=True, kw_only=True, slots=True)
class Updated:
    """The worker samples with `version` from its next token on."""

    version: int
    paused_s: float
    """Seconds in which it sampled nothing for it."""

    received_bytes: int
    prefix: str = ""
    """Of the channel that brought it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class UpdateFailed:
    """The worker goes on with the weights that it has, and waits for another `Join`."""

    reason: str
    prefix: str = ""
    """Of the channel that failed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pulse:
    """A worker's figures since its last pulse."""

    version: int | None
    """None before its first weights."""

    running: int
    """Prompts it answers now."""

    drawn_tokens: int
    busy_s: float
    idle_s: float
    figures: Mapping[str, float] = field(default_factory=dict)


FromRollout: TypeAlias = Under | Answered | Updated | UpdateFailed | Pulse

Payload: TypeAlias = dict[str, Any]
"""What `Kept.payload` holds: see trainer/rl/payload.py."""
