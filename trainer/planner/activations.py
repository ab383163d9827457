"""Pure: what happens to activations in each step, and what that costs.

Guarantees, each asserted in tests/trainer/planner/test_activations.py:
- what the recipe names is chosen; `auto` takes, of what fits the device, the one with the least
  predicted time, and where nothing fits the one that needs the least memory;
- alpha is choose_alpha's for the step's tokens and the rates as corrected, rounded down;
- everything else of the plan is the planner's own, and it is told what the step would have taken
  with all activations kept, so that its rates do not depend on the choice;
- a step that waited for copies lowers the tier's rate, one that did not raises it if it must.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import floor

from offload.activations.amount import choose_alpha, predict_swap
from offload.activations.policy import ActivationPolicy, Kind, Tier
from trainer.model.activation_size import BlockCost
from trainer.planner.costs import SMOOTHING, Hardware
from trainer.planner.plan import StepPlan, Terms
from trainer.planner.protocol import Planner

ALPHA_STEPS = 16
"""Alpha comes in so many steps: each new value is checked once, by computing some rows again."""

WINDOW_BLOCKS = 1.5
"""Blocks' worth of bytes that may be leaving, or be fetched ahead."""

FELT = 0.02
"""Share of a step's compute from which on waiting for copies says that the tier is busy."""

GIB = 1024**3


@dataclass(frozen=True, kw_only=True)
class TierRoom:
    """Where a rank's activations may go."""

    tier: Tier
    num_bytes: int
    bytes_per_s: float
    """The slower of out and back."""


@dataclass(frozen=True, kw_only=True)
class ActivationRoom:
    """What a rank has for activations, and what its blocks save."""

    block: BlockCost
    """On average."""

    blocks: int
    """That this rank runs in a round."""

    kept_blocks: int = 0
    """Of these, the last ones that a swap keeps."""

    waiting: int = 1
    """Rounds whose activations wait at one time: several in a pipeline."""

    device_bytes: int
    """Beside weights, gradients and states."""

    tier: TierRoom | None = None
    """None where nothing can leave."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One policy, for one step."""

    policy: ActivationPolicy
    extra_s: float
    """Computing again, per round."""

    exposed_s: float
    """Waiting for copies, per round."""

    peak_bytes: float
    """Activations on the device."""

    moved_bytes: float = 0.0
    """One way, per round."""

    @property
    def cost_s(self) -> float:
        """What it adds to a round that keeps everything."""
        return self.extra_s + self.exposed_s


def weigh(
    kind: Kind, room: ActivationRoom, *, tokens: int, flops_per_s: float, share: float | None
) -> Choice:
    """What `kind` costs where a rank has `tokens` in its fullest round.

    `share` fixes alpha; None takes the best. Raises ValueError for a swap without a tier.
    """
    block, blocks = room.block.bytes_of(tokens), room.blocks
    waiting = blocks * room.waiting
    forward_s = tokens * room.block.flops / flops_per_s
    tokenwise_s = tokens * room.block.tokenwise_flops / flops_per_s
    policy = ActivationPolicy(kind=kind, kept_blocks=room.kept_blocks)
    if kind == "keep":
        return _choice(policy, 0.0, waiting * block.total_bytes)
    if kind == "recompute":
        peak_bytes = waiting * block.input_bytes + block.total_bytes
        return _choice(policy, blocks * forward_s, peak_bytes)
    if kind == "selective":
        held_bytes = block.input_bytes + block.attention_bytes
        return _choice(policy, blocks * tokenwise_s, waiting * held_bytes + block.total_bytes)
    if room.tier is None:
        raise ValueError("a swap needs a tier; name offload.disk, or take a device")
    alpha = share
    if alpha is None:
        best = choose_alpha(
            block,
            forward_s=forward_s,
            bytes_per_s=room.tier.bytes_per_s,
            tier_bytes=room.tier.num_bytes // room.waiting,
            blocks=blocks,
            kept_blocks=room.kept_blocks,
        )
        alpha = floor(best * ALPHA_STEPS) / ALPHA_STEPS
    found = predict_swap(
        block,
        alpha,
        forward_s=forward_s,
        tokenwise_s=tokenwise_s,
        bytes_per_s=room.tier.bytes_per_s,
        blocks=blocks,
        kept_blocks=room.kept_blocks,
        window_bytes=min(WINDOW_BLOCKS, blocks - 1) * block.total_bytes,
    )
    return Choice(
        policy=replace(policy, alpha=alpha, tier=room.tier.tier),
        extra_s=found.recompute_s,
        exposed_s=found.exposed_s,
        peak_bytes=found.peak_bytes,
        moved_bytes=found.moved_bytes,
    )


def _choice(policy: ActivationPolicy, extra_s: float, peak_bytes: float) -> Choice:
    return Choice(policy=policy, extra_s=extra_s, exposed_s=0.0, peak_bytes=peak_bytes)


def choose_kind(
    kinds: Sequence[Kind],
    room: ActivationRoom,
    *,
    tokens: int,
    flops_per_s: float,
    share: float | None = None,
) -> Choice:
    """The cheapest of `kinds` that fits the device, or the smallest of them."""
    choices = [
        weigh(kind, room, tokens=tokens, flops_per_s=flops_per_s, share=share) for kind in kinds
    ]
    fitting = [choice for choice in choices if choice.peak_bytes <= room.device_bytes]
    if fitting:
        return min(fitting, key=lambda choice: choice.cost_s)
    return min(choices, key=lambda choice: choice.peak_bytes)


class ActivationPlanner:
    """`planner`, which plans as if all activations were kept, and what is done to them instead."""

    def __init__(
        self,
        planner: Planner,
        *,
        kinds: Sequence[Kind],
        room: ActivationRoom,
        share: float | None,
    ) -> None:
        self._planner = planner
        self._kinds = tuple(kinds)
        self._room = room
        self._share = share
        self._choices: dict[int, Choice] = {}

    @property
    def hardware(self) -> Hardware:
        """Rates as corrected so far."""
        return self._planner.hardware

    @property
    def room(self) -> ActivationRoom:
        """What there is, with the tier's rate as corrected so far."""
        return self._room

    def choose(self, step: int, lengths_tokens: Sequence[int]) -> StepPlan:
        """The planner's plan for `step`, with what happens to its activations."""
        plan = self._planner.choose(step, lengths_tokens)
        choice = choose_kind(
            self._kinds,
            self._room,
            tokens=fullest_round_tokens(plan, lengths_tokens),
            flops_per_s=self.hardware.flops_per_s,
            share=self._share,
        )
        self._choices[step] = choice
        rounds, predicted = len(plan.rounds), plan.predicted
        return replace(
            plan,
            activation=str(choice.policy),
            predicted=replace(
                predicted,
                compute_s=predicted.compute_s + rounds * choice.extra_s,
                copies_s=predicted.copies_s + rounds * choice.exposed_s,
            ),
            reasons=(*plan.reasons, self._why(choice)),
        )

    def observe(self, plan: StepPlan, measured: Terms) -> None:
        """Pass on what `plan` would have taken with all kept, and correct the tier's rate."""
        choice = self._choices.pop(plan.step)
        if choice.moved_bytes and self._room.tier is not None:
            moved_bytes = 2.0 * len(plan.rounds) * choice.moved_bytes
            tier = replace(
                self._room.tier,
                bytes_per_s=_corrected(self._room.tier.bytes_per_s, moved_bytes, measured),
            )
            self._room = replace(self._room, tier=tier)
        whole_s = plan.predicted.compute_s
        extra_s = len(plan.rounds) * choice.extra_s
        kept = (whole_s - extra_s) / whole_s if whole_s > 0.0 else 1.0
        self._planner.observe(plan, replace(measured, compute_s=measured.compute_s * kept))

    def _why(self, choice: Choice) -> str:
        kind, room = choice.policy.kind, self._room
        need = f"{choice.peak_bytes / GIB:.3g} GiB of {room.device_bytes / GIB:.3g} GiB"
        if kind == "keep":
            return f"activations stay: about {need} beside weights and states"
        line = f"activations: {choice.policy}, about {need} on the device"
        if choice.peak_bytes > room.device_bytes:
            line += ", the least of all choices"
        if choice.extra_s:
            line += f", {choice.extra_s:.3g} s a round to compute again"
        if room.tier is not None and kind == "swap":
            line += f", {choice.exposed_s:.3g} s a round to wait at {room.tier.bytes_per_s:.3g} B/s"
        return line


def fullest_round_tokens(plan: StepPlan, lengths_tokens: Sequence[int]) -> int:
    """Most tokens that a rank holds in a round of `plan`."""
    return max(
        (
            -(-sum(lengths_tokens[i] for i in group.sequences) // group.size)
            for groups in plan.rounds
            for group in groups.groups
        ),
        default=0,
    )


def _corrected(bytes_per_s: float, moved_bytes: float, measured: Terms) -> float:
    """The tier's rate after a step that moved so much: seen when it was waited for, else at
    least what it must have been."""
    busy_s = measured.compute_s + measured.copies_s
    if busy_s <= 0.0:
        return bytes_per_s
    seen = moved_bytes / busy_s
    if measured.copies_s > FELT * measured.compute_s:
        return (1.0 - SMOOTHING) * bytes_per_s + SMOOTHING * seen
    return max(bytes_per_s, seen)
