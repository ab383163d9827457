"""Run the stages of one rank: the training step and the evaluation of a pipeline.

Not `torch.distributed.pipelining`: its stages fix one shape for all microbatches of all steps and
keep a receive buffer for each of them, while rounds here differ in tokens and in number from step
to step. It also reduces no sharded gradient before the end of a step, runs no hook on gradients of
split backwards, and wants as many microbatches as stages. Here activations are freed when they
have left, and each receive is posted one action ahead, to overlap with compute.

Guarantees, each asserted in tests/parallel/pipeline/test_run.py:
- losses and gradients are those of the stages run one after the other in one process, bitwise
  where parameters are not sharded and the microbatches come in the same order;
- microbatches may have different numbers of tokens, and may be fewer than stages;
- each stage is told of its last backward before it begins, so that gradients are exchanged once.

In plain PyTorch, with stages that return `StageOutput`:

    pipeline = Pipeline(stages, shape=shape, group=group, hidden_shape=lambda b: (len(b), width))
    reports = pipeline.run(batches, divisor=num_targets)
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from comms.ledger import Ledger
from parallel.pipeline.execute import Parts, StepRun, Task
from parallel.pipeline.schedule import Orders, PipelineShape, forward_orders, plan_timeline
from parallel.pipeline.wire import Wire

Batch = TypeVar("Batch")

StartBackward = Callable[[int, bool], None]
"""Called with the local number of a stage before each of its backwards that accumulates
gradients of weights, and whether it is the stage's last one of the step."""


class Pipeline(Generic[Batch]):
    """The stages of this rank, ascending, in a pipeline over `group`. All its ranks create it.

    `hidden_shape` tells from a microbatch what stages pass on; every rank must be able to tell.
    `reverse_group` is a second communicator over the same ranks, needed on CUDA.
    """

    def __init__(
        self,
        stages: Sequence[nn.Module],
        *,
        shape: PipelineShape,
        group: dist.ProcessGroup,
        hidden_shape: Callable[[Batch], tuple[int, ...]],
        reverse_group: dist.ProcessGroup | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | None = None,
        ledger: Ledger | None = None,
        start_backward: StartBackward = lambda stage, last: None,
    ) -> None:
        numbers = _stage_numbers(shape, group, len(stages))
        self._shape = shape
        self._hidden_shape = hidden_shape
        self._parts = Parts(
            shape=shape,
            stages=dict(zip(numbers, stages, strict=True)),
            wire=Wire(
                group,
                reverse=reverse_group,
                device=torch.device("cpu") if device is None else device,
                ledger=Ledger() if ledger is None else ledger,
            ),
            dtype=dtype,
            start_backward=start_backward,
        )
        self._orders: dict[int, Orders] = {}

    def run(
        self,
        batches: Sequence[Batch],
        *,
        divisor: float,
        arguments: Sequence[Mapping[str, Any]] | None = None,
        whole_backward: bool = False,
    ) -> list[list[Any]]:
        """Forward and backward of all microbatches of a step; all ranks call it alike.

        The gradient is that of the losses' sum divided by `divisor`, added to what is there.
        Returns the reports of this rank's stages: one list per stage, one entry per microbatch.
        `arguments` are keyword arguments of the stages, per microbatch. `whole_backward` computes
        gradients of weights at once also under `zero_bubble`: needed where activations are
        recomputed or swapped or blocks compiled, since both halves would want them.
        Raises ValueError without microbatches, or where a stage returns another shape or dtype
        than announced.
        """
        if len(batches) not in self._orders:
            self._orders[len(batches)] = plan_timeline(self._shape, len(batches)).orders
        task = self._task(self._orders[len(batches)], batches, arguments, divisor)
        split = self._shape.splits_backward and not whole_backward
        return StepRun(self._parts, task, split=split).run()

    @torch.no_grad()
    def evaluate(
        self, batches: Sequence[Batch], *, arguments: Sequence[Mapping[str, Any]] | None = None
    ) -> list[list[Any]]:
        """Forward of all microbatches, without gradients; all ranks call it alike.

        Returns what `run` returns.
        """
        orders = forward_orders(self._shape, len(batches))
        return StepRun(self._parts, self._task(orders, batches, arguments, 1.0), split=False).run()

    def _task(
        self,
        orders: Orders,
        batches: Sequence[Batch],
        arguments: Sequence[Mapping[str, Any]] | None,
        divisor: float,
    ) -> Task:
        return Task(
            orders=orders,
            batches=batches,
            arguments=[{}] * len(batches) if arguments is None else arguments,
            hidden_shapes=[tuple(self._hidden_shape(batch)) for batch in batches],
            divisor=divisor,
        )


def _stage_numbers(shape: PipelineShape, group: dist.ProcessGroup, stages: int) -> tuple[int, ...]:
    if group.size() != shape.ranks:
        raise ValueError(
            f"a pipeline over {shape.ranks} ranks needs a group of as many, got {group.size()}"
        )
    numbers = shape.stages_of(group.rank())
    if len(numbers) != stages:
        raise ValueError(
            f"rank {group.rank()} of the pipeline holds stages {numbers}, but got {stages} modules"
        )
    return numbers
