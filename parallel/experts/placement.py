"""Pure: which rank holds which expert, and which ranks borrow a copy of a hot one.

Elastic placement (SE-MoE, arXiv 2205.10034): loads drift while a model trains, and the most loaded
rank sets the pace. At a step boundary experts may change places, two at a time, and a hot expert
may be lent to ranks that have room, which then take equal parts of its rows.

Guarantees, each asserted in tests/parallel/experts/test_placement.py:
- every expert has exactly one place, and every rank as many experts as before;
- the load of the most loaded rank, what loans cost included, never grows, and a change pays at
  least `min_gain` of the mean load;
- an expert that is more than a rank's fair share by itself is lent, unless loans cost too much;
- the answer depends on the arguments alone, so all ranks come to the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Placement:
    """Where the experts of one layer are. Slot s is on rank s // (E / ranks)."""

    expert_slot: tuple[int, ...]
    """Each expert's slot: a permutation."""

    ranks: int
    loans: tuple[tuple[int, int], ...] = ()
    """(slot, rank) pairs, ascending: the rank computes with a copy of that slot's expert."""

    def __post_init__(self) -> None:
        if sorted(self.expert_slot) != list(range(len(self.expert_slot))):
            raise ValueError(f"{list(self.expert_slot)} gives some experts no place of their own")
        if len(self.expert_slot) % self.ranks:
            raise ValueError(
                f"{self.ranks} ranks do not divide {len(self.expert_slot)} experts; spread them "
                "over a divisor"
            )
        wrong = [
            (slot, rank)
            for slot, rank in self.loans
            if not 0 <= slot < len(self.expert_slot)
            or not 0 <= rank < self.ranks
            or rank == self.owner(slot)
        ]
        if wrong or list(self.loans) != sorted(set(self.loans)):
            raise ValueError(
                f"loans {list(self.loans)} must be ascending (slot, other rank) pairs without "
                "repetition"
            )

    @classmethod
    def initial(cls, num_experts: int, ranks: int) -> "Placement":
        """Experts in their order, no loans."""
        return cls(tuple(range(num_experts)), ranks)

    @property
    def per_rank(self) -> int:
        """Experts of one rank."""
        return len(self.expert_slot) // self.ranks

    def owner(self, slot: int) -> int:
        """The rank that holds `slot`."""
        return slot // self.per_rank

    def holders(self, slot: int) -> tuple[int, ...]:
        """The ranks that compute with the expert of `slot`, its owner first."""
        return (self.owner(slot), *(rank for lent, rank in self.loans if lent == slot))


def rank_loads(load_E: Sequence[float], placement: Placement, *, loan_rows: float) -> list[float]:
    """Rows of each rank; holders share an expert's evenly, and a loan costs `loan_rows` on both
    sides."""
    loads = [0.0] * placement.ranks
    for expert, slot in enumerate(placement.expert_slot):
        holders = placement.holders(slot)
        for rank in holders:
            loads[rank] += load_E[expert] / len(holders)
    for slot, rank in placement.loans:
        loads[rank] += loan_rows
        loads[placement.owner(slot)] += loan_rows
    return loads


def rebalance(
    load_E: Sequence[float],
    placement: Placement,
    *,
    loan_rows: float,
    min_gain: float = 0.05,
    max_swaps: int = 64,
) -> Placement:
    """A placement under which the most loaded rank has less to do, or the same one.

    `load_E` are rows per expert of a typical step. `loan_rows` is what lending an expert costs: the
    rows that a rank would work off while its weights go out and their gradient comes home.
    `min_gain` is the share of the mean load that a change must save, since moving experts takes
    time as well. Raises ValueError where there is not one load per expert.
    """
    if len(load_E) != len(placement.expert_slot):
        raise ValueError(
            f"{len(load_E)} loads for {len(placement.expert_slot)} experts; give one for each"
        )
    mean = sum(load_E) / placement.ranks
    found = Placement(placement.expert_slot, placement.ranks)
    for _ in range(max_swaps):
        better = _best_swap(load_E, found)
        if better is None:
            break
        found = better
    found = _lend(load_E, found, loan_rows, least=min_gain * mean)

    def worst(candidate: Placement) -> float:
        return max(rank_loads(load_E, candidate, loan_rows=loan_rows))

    return found if worst(placement) - worst(found) > min_gain * mean else placement


def _best_swap(load_E: Sequence[float], placement: Placement) -> Placement | None:
    """The exchange between the most loaded rank and another that lowers the load of the busier of
    the two most, or None. Sums of squares fall with each, so repeating it ends."""
    loads = rank_loads(load_E, placement, loan_rows=0.0)
    busiest = max(range(placement.ranks), key=lambda r: (loads[r], -r))
    experts = sorted(range(len(load_E)), key=placement.expert_slot.__getitem__)
    best: tuple[float, int, int] | None = None
    for own in _on(experts, busiest, placement.per_rank):
        for rank in range(placement.ranks):
            for other in _on(experts, rank, placement.per_rank):
                gain = load_E[own] - load_E[other]
                after = max(loads[busiest] - gain, loads[rank] + gain)
                if rank != busiest and after < loads[busiest] * (1 - 1e-9):
                    best = min(best or (after, own, other), (after, own, other))
    if best is None:
        return None
    slots = list(placement.expert_slot)
    _, own, other = best
    slots[own], slots[other] = slots[other], slots[own]
    return Placement(tuple(slots), placement.ranks)


def _on(experts_by_slot: Sequence[int], rank: int, per_rank: int) -> Sequence[int]:
    return experts_by_slot[rank * per_rank : (rank + 1) * per_rank]


def _lend(
    load_E: Sequence[float], placement: Placement, loan_rows: float, *, least: float
) -> Placement:
    """Lend an expert of the most loaded rank to a less loaded one while that pays."""
    for _ in range(placement.ranks * placement.per_rank):
        loads = rank_loads(load_E, placement, loan_rows=loan_rows)
        busiest = max(range(placement.ranks), key=lambda r: (loads[r], -r))
        best: tuple[float, Placement] | None = None
        for slot in range(len(load_E)):
            holders = placement.holders(slot)
            to = _idlest(loads, holders)
            if busiest not in holders or to is None:
                continue
            loans = tuple(sorted({*placement.loans, (slot, to)}))
            candidate = Placement(placement.expert_slot, placement.ranks, loans)
            after = rank_loads(load_E, candidate, loan_rows=loan_rows)
            # Of the ranks concerned: others may be as loaded, and have their turn next.
            worst = max(after[rank] for rank in (*holders, to))
            if best is None or worst < best[0]:
                best = (worst, candidate)
        if best is None or loads[busiest] - best[0] <= least:
            return placement
        placement = best[1]
    return placement


def _idlest(loads: Sequence[float], holders: Sequence[int]) -> int | None:
    free = [rank for rank in range(len(loads)) if rank not in holders]
    return min(free, key=lambda r: (loads[r], r)) if free else None


def loan_cost_rows(
    *,
    expert_bytes: int,
    expert_parameters: int,
    link_bytes_per_s: float,
    flops_per_s: float,
) -> float:
    """Rows that a rank works off, forward and backward, in the time in which one expert's weights
    go out and their gradient comes home: the `loan_rows` of `rebalance`."""
    transfer_s = 2 * expert_bytes / link_bytes_per_s
    # Two operations per weight, and backward counts twice the forward.
    return transfer_s * flops_per_s / (6 * expert_parameters)
