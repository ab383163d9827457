"""The next step's plan and tensors, made ready while the current step trains."""

import time
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch.distributed as dist

from comms.groups import broadcast_bytes
from parallel.sequence.stretches import padding_multiple, token_ranges
from trainer.data.batch import Batch
from trainer.data.sequence import PackedSequence
from trainer.data.stream import TokenStream
from trainer.figures import StepFigures
from trainer.islands.share import BatchShare
from trainer.planner.codec import decode_plan, encode_plan
from trainer.planner.plan import Padding, SequenceGroup, StepPlan
from trainer.planner.protocol import Planner


@dataclass(frozen=True, kw_only=True)
class StepWork:
    """What one rank does in one step."""

    plan: StepPlan
    groups: tuple[SequenceGroup, ...]
    """This rank's sequence group, one per round."""

    batches: tuple[Batch, ...]
    """This rank's tensors, one per round."""

    sequences: tuple[PackedSequence, ...]
    """Of this island's part of the step."""

    num_tokens: int
    """Input tokens of the whole step, over all ranks."""

    squared_tokens: int
    """Sum of the squared lengths of the step's sequences."""

    own_tokens: float
    """This rank's share of the input tokens of its groups."""

    own_squared_tokens: float
    """The same of the squared lengths of their sequences."""

    num_targets: int
    """Target tokens of this island's part of the step."""

    divisor: float
    """What losses are divided by: the island's share of the target tokens of the whole step. The
    mean of the islands' gradients, by their shares, is then that of all tokens, whatever each
    island has."""

    figures: StepFigures = field(default_factory=StepFigures)
    """What is reported beside the loss."""


class AskedToStop(Exception):
    """The run was asked to stop while a batch was waited for."""


class Feed(Protocol):
    """Where steps come from. All ranks take the same ones in the same order."""

    def phase(self, step: int) -> str:
        """What waiting for `step` is called in telemetry."""

    def take(self, step: int) -> StepWork:
        """Wait for `step`. Steps must be consecutive. May raise AskedToStop."""

    def close(self) -> None:
        """End its threads."""


class StepFeed:
    """Prepares one step ahead on a thread of its own, in the order in which steps are taken.

    The first rank of an island chooses the plan of its part of the batch and hands it to the
    others over `group`, which holds the island's ranks and which nothing else uses. All ranks take
    the same steps in the same order.
    """

    def __init__(
        self,
        stream: TokenStream,
        planner: Planner,
        *,
        data_rank: int,
        share: BatchShare,
        group: dist.ProcessGroup,
        steps: Iterable[int],
    ) -> None:
        """`steps` are those to prepare, in order."""
        self._stream = stream
        self._planner = planner
        self._share = share
        self._data_rank = data_rank
        self._group = group
        self._steps = iter(steps)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="feed")
        self._next = self._begin()

    def phase(self, step: int) -> str:
        """Waiting for data, whatever the step."""
        return "data"

    def take(self, step: int) -> StepWork:
        """Wait for `step`, and begin to prepare the one after it. None may be left out."""
        assert self._next is not None, f"there is no step {step}"
        work = self._next.result()
        assert work.plan.step == step, f"asked for step {step}, next is {work.plan.step}"
        self._next = self._begin()
        return work

    def close(self) -> None:
        """Let the thread finish the step it is preparing, and end it."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _begin(self) -> "Future[StepWork] | None":
        step = next(self._steps, None)
        return None if step is None else self._thread.submit(self._prepare, step)

    def _prepare(self, step: int) -> StepWork:
        # Steps count from 1 for people, and from 0 in the stream.
        batch = self._stream.sequences(step - 1)
        part = self._share.at(step)
        sequences = tuple(part.of(batch))
        plan = agreed_plan(
            self._planner, step, [s.num_tokens for s in sequences], group=self._group
        )
        groups = tuple(r.group_of(self._data_rank) for r in plan.rounds)
        shares = [(sequences[i].num_tokens, g.size) for g in groups for i in g.sequences]
        return StepWork(
            plan=plan,
            groups=groups,
            batches=tuple(self._batch(group, sequences, plan.padding) for group in groups),
            sequences=sequences,
            num_tokens=sum(s.num_tokens for s in batch),
            squared_tokens=sum(s.num_tokens**2 for s in batch),
            own_tokens=sum(tokens / ranks for tokens, ranks in shares),
            own_squared_tokens=sum(tokens**2 / ranks for tokens, ranks in shares),
            # A step of prompts alone has no target; its loss is then 0 and not 0/0.
            num_targets=max(1, sum(s.num_targets for s in sequences)),
            divisor=part.divisor(sum(s.num_targets for s in batch)),
        )

    def _batch(
        self, group: SequenceGroup, sequences: Sequence[PackedSequence], padding: Padding
    ) -> Batch:
        """This rank's share of its group's stream."""
        multiple = padding_multiple(group.attention)
        whole = self._stream.batch(
            [sequences[i] for i in group.sequences], padded=padding == "rows", multiple=multiple
        )
        if group.size == 1:
            return whole
        position = self._data_rank - group.first_rank
        return whole.share(token_ranges(whole.sequence_ends[-1], group.attention, position))


def agreed_plan(
    planner: Planner, step: int, lengths_tokens: list[int], *, group: dist.ProcessGroup
) -> StepPlan:
    """The plan of the first rank of `group` for sequences of these lengths. All of them call it."""
    if group.rank() > 0:
        return decode_plan(broadcast_bytes(b"", group=group))
    begin_s = time.perf_counter()
    plan = planner.choose(step, lengths_tokens)
    plan = replace(plan, plan_s=time.perf_counter() - begin_s)
    if group.size() > 1:
        broadcast_bytes(encode_plan(plan), group=group)
    return plan
