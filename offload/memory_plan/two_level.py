"""MEMO's plan of a whole iteration in two levels (arXiv 2407.12117, section 4.2). Pure.

Level one places the transient tensors of one block's forward, and of its backward. Level two treats
each run of a block as one request of that peak, and places it among the tensors of the rest.

Guarantees, each asserted in tests/offload/memory_plan/test_two_level.py:
- the placement of the iteration is valid, block tensors included;
- identical blocks are solved once and get the same addresses relative to their own.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from offload.memory_plan.caching import AllocatorUse, simulate_caching
from offload.memory_plan.program import ALIGNMENT, plan_addresses
from offload.memory_plan.requests import Placement, Request, aligned, lower_bound_bytes


@dataclass(frozen=True, kw_only=True)
class BlockRun:
    """One block's forward or backward: `duration` units of time from `begin`."""

    name: str
    kind: str
    """Runs of one kind have the same tensors at the same times after `begin`."""

    begin: int
    duration: int


@dataclass(frozen=True, kw_only=True)
class IterationPlan:
    """Addresses for an iteration, and what they are compared with."""

    kinds: dict[str, Placement]
    """Level one, relative to a run's address."""

    outer: Placement
    """Level two: runs and the tensors outside them."""

    flat: tuple[Request, ...]
    """All tensors of the iteration on one time line."""

    addresses: dict[str, int]
    """One for each of them."""

    caching: AllocatorUse
    lower_bound_bytes: int

    @property
    def peak_bytes(self) -> int:
        """Size of the arena."""
        return self.outer.peak_bytes

    @property
    def fragmentation(self) -> float:
        """Share of the arena that the lower bound does not explain."""
        return 1.0 - self.lower_bound_bytes / self.peak_bytes if self.peak_bytes else 0.0


def plan_iteration(
    kinds: dict[str, Sequence[Request]],
    runs: Sequence[BlockRun],
    outside: Sequence[Request],
    *,
    alignment: int = ALIGNMENT,
    time_limit_s: float = 10.0,
) -> IterationPlan:
    """Place an iteration. `kinds` has each kind's tensors, times counted from the run's begin.

    Raises:
        ValueError: A run is of no kind, or a tensor outlives its run: pass it in `outside`.
    """
    for run in runs:
        _check(run, kinds)
    placed = {
        kind: plan_addresses(requests, alignment=alignment, time_limit_s=time_limit_s)
        for kind, requests in kinds.items()
    }
    pseudo = [
        Request(
            name=run.name,
            size_bytes=placed[run.kind].peak_bytes,
            begin=run.begin,
            end=run.begin + run.duration,
        )
        for run in runs
    ]
    outer = plan_addresses([*outside, *pseudo], alignment=alignment, time_limit_s=time_limit_s)
    flat, addresses = list(outside), {r.name: outer.addresses[r.name] for r in outside}
    for run in runs:
        for request in kinds[run.kind]:
            name = f"{run.name}/{request.name}"
            flat.append(_moved(request, name, run.begin))
            inside = placed[run.kind].addresses[request.name]
            addresses[name] = outer.addresses[run.name] + inside
    return IterationPlan(
        kinds=placed,
        outer=outer,
        flat=tuple(flat),
        addresses=addresses,
        caching=simulate_caching(flat),
        lower_bound_bytes=lower_bound_bytes(aligned(flat, alignment)),
    )


def _check(run: BlockRun, kinds: dict[str, Sequence[Request]]) -> None:
    if run.kind not in kinds:
        raise ValueError(f"run {run.name} is of kind {run.kind}; known are {sorted(kinds)}")
    late = next((r for r in kinds[run.kind] if r.begin < 0 or r.end > run.duration), None)
    if late is not None:
        raise ValueError(
            f"{late.name} lives from {late.begin} to {late.end}, its run {run.name} takes "
            f"{run.duration}; pass tensors that outlive their block as outside"
        )


def _moved(request: Request, name: str, by: int) -> Request:
    return Request(
        name=name,
        size_bytes=request.size_bytes,
        begin=request.begin + by,
        end=request.end + by,
    )
