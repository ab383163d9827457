"""One pass through a pipeline, as one rank sees it: follow the order, send, receive."""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from parallel.pipeline.backward import Root, backward, backward_input
from parallel.pipeline.schedule import Action, Kind, Orders, PipelineShape, arrivals, source_of
from parallel.pipeline.stages import HeldSync, StageOutput
from parallel.pipeline.wire import Arrival, Wire


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a pass works on."""

    orders: Orders
    batches: Sequence[Any]
    arguments: Sequence[Mapping[str, Any]]
    """Keyword arguments of the stages, per microbatch."""

    hidden_shapes: Sequence[tuple[int, ...]]
    """Of what travels between stages, per microbatch."""

    divisor: float
    """Of the losses."""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What a rank has: its stages, and the way to the others."""

    shape: PipelineShape
    stages: Mapping[int, nn.Module]
    """By their number in the whole pipeline."""

    wire: Wire
    dtype: torch.dtype
    """Of what travels."""

    start_backward: Callable[[int, bool], None]


class _Outcome(NamedTuple):
    """What a forward left for its backward; edges instead of tensors, which can then be freed."""

    input_tensor: Tensor | None
    hidden: GradientEdge | None
    loss: Root | None


class StepRun:
    """Created for one pass and run once."""

    def __init__(self, parts: Parts, task: Task, *, split: bool) -> None:
        self._parts = parts
        self._task = task
        self._split = split
        self._last = len(task.batches) - 1
        self._number = {stage: i for i, stage in enumerate(parts.stages)}
        self._syncs = {stage: HeldSync(module) for stage, module in parts.stages.items()}
        self._expected = {
            peer: deque(actions)
            for peer, actions in arrivals(parts.shape, task.orders, parts.wire.rank).items()
        }
        self._under_way: dict[Action, Arrival] = {}
        self._handed: dict[Action, Tensor] = {}
        """What this rank's stages give to each other."""
        self._outcomes: dict[tuple[int, int], _Outcome] = {}
        self._deferred: dict[tuple[int, int], Callable[[], None]] = {}
        self._reports: list[list[Any]] = [[] for _ in parts.stages]

    def run(self) -> list[list[Any]]:
        """Reports per stage of this rank and microbatch."""
        if self._split:
            for sync in self._syncs.values():
                sync.hold()
        perform = {
            Kind.FORWARD: self._forward,
            Kind.BACKWARD: self._backward,
            Kind.INPUT: self._backward_input if self._split else self._backward,
            Kind.WEIGHT: self._backward_weight,
        }
        order = self._task.orders[self._parts.wire.rank]
        for number, action in enumerate(order):
            for coming in order[number : number + 2]:
                self._expect(coming)
            perform[action.kind](action)
        self._parts.wire.finish()
        return self._reports

    def _forward(self, action: Action) -> None:
        stage, microbatch = action.stage, action.microbatch
        input_tensor = self._fetch(action)
        if input_tensor is not None and torch.is_grad_enabled():
            input_tensor.requires_grad_()
        output: StageOutput = self._parts.stages[stage](
            input_tensor, self._task.batches[microbatch], **self._task.arguments[microbatch]
        )
        self._reports[self._number[stage]].append(output.report)
        if torch.is_grad_enabled():
            self._outcomes[stage, microbatch] = self._outcome(input_tensor, output)
        if stage < self._parts.shape.stages - 1:
            self._deliver(action, self._checked(output.hidden, stage, microbatch), stage + 1)

    def _outcome(self, input_tensor: Tensor | None, output: StageOutput) -> _Outcome:
        hidden, loss = output.hidden, None
        if output.loss is not None and output.loss.requires_grad:
            share = output.loss / self._task.divisor
            loss = get_gradient_edge(share), torch.ones_like(share)
        edge = None
        if hidden is not None and hidden.requires_grad:
            edge = get_gradient_edge(hidden)
        return _Outcome(input_tensor, edge, loss)

    def _backward(self, action: Action) -> None:
        outcome = self._outcomes.pop((action.stage, action.microbatch))
        roots = self._roots(action, outcome)
        self._accumulate(action, lambda: backward(roots))
        if outcome.input_tensor is not None:
            self._hand_back(action, outcome.input_tensor, outcome.input_tensor.grad)

    def _backward_input(self, action: Action) -> None:
        sync, place = self._syncs[action.stage], (action.stage, action.microbatch)
        if sync.sharded and action.microbatch == self._last:
            for microbatch in range(self._last):
                self._backward_weight(Action(Kind.WEIGHT, action.stage, microbatch))
            sync.release()
            self._backward(action)
            return
        outcome = self._outcomes.pop(place)
        roots = self._roots(action, outcome)
        if outcome.input_tensor is None:
            self._deferred[place] = lambda: backward(roots)
            return
        gradient, weights = backward_input(roots, outcome.input_tensor)
        self._deferred[place] = weights.run
        self._hand_back(action, outcome.input_tensor, gradient)

    def _backward_weight(self, action: Action) -> None:
        work = self._deferred.pop((action.stage, action.microbatch), None)
        if work is not None:  # a backward that was not split has left none
            self._syncs[action.stage].gather()
            self._accumulate(action, work)

    def _accumulate(self, action: Action, work: Callable[[], None]) -> None:
        self._parts.start_backward(self._number[action.stage], action.microbatch == self._last)
        work()

    def _roots(self, action: Action, outcome: _Outcome) -> list[Root]:
        gradient = self._fetch(action)
        roots = [] if outcome.loss is None else [outcome.loss]
        if gradient is not None and outcome.hidden is not None:
            roots.append((outcome.hidden, gradient))
        return roots

    def _hand_back(self, action: Action, input_tensor: Tensor, gradient: Tensor | None) -> None:
        given = torch.zeros_like(input_tensor) if gradient is None else gradient
        self._deliver(action, given, action.stage - 1)

    def _expect(self, action: Action) -> None:
        """Receive what `action` needs, and before it whatever its sender sends before."""
        source = source_of(self._parts.shape, action)
        if source is None or source.stage in self._parts.stages:
            return
        peer = self._parts.shape.rank_of(source.stage)
        while source not in self._under_way:
            coming = self._expected[peer].popleft()
            shape = self._task.hidden_shapes[coming.microbatch]
            self._under_way[coming] = self._parts.wire.receive(shape, self._parts.dtype, peer)

    def _fetch(self, action: Action) -> Tensor | None:
        source = source_of(self._parts.shape, action)
        if source is None:
            return None
        if source.stage in self._parts.stages:
            return self._handed.pop(source)
        return self._under_way.pop(source).wait()

    def _deliver(self, action: Action, tensor: Tensor, stage: int) -> None:
        if stage in self._parts.stages:
            self._handed[action] = tensor.detach()
        else:
            self._parts.wire.send(tensor.detach(), self._parts.shape.rank_of(stage))

    def _checked(self, hidden: Tensor | None, stage: int, microbatch: int) -> Tensor:
        wanted = self._task.hidden_shapes[microbatch], self._parts.dtype
        found = None if hidden is None else (tuple(hidden.shape), hidden.dtype)
        if hidden is None or found != wanted:
            raise ValueError(
                f"stage {stage} gave {found} for microbatch {microbatch}, but the next stage "
                f"expects {wanted}; hidden_shape and dtype of the pipeline must say what stages "
                f"return"
            )
        return hidden
