"""The hot choice of one step, and the terms of its time. Pure data.

Guarantees, each asserted in tests/trainer/planner/test_fixed.py:
- every sequence of the step is in exactly one group of one round;
- in a round no rank is in two groups;
- the same arguments give the same plan on every rank.
"""

from dataclasses import dataclass, fields
from typing import Literal

from parallel.layout import Layout
from parallel.sequence.stretches import AttentionScheme

Activation = Literal["keep", "recompute"]
"""What a planner that does not choose reckons with."""

Padding = Literal["rows", "group"]
"""How far streams are padded: each sequence to seq_len, or the last one until the group's ranks can
share the stream."""

LOCAL = AttentionScheme()
"""One rank holds the whole stream."""


@dataclass(frozen=True, kw_only=True)
class Terms:
    """Seconds of one step by cause, the same names in prediction and in measurement."""

    compute_s: float = 0.0
    """Forward and backward arithmetic."""

    communication_s: float = 0.0
    """Communication that compute did not hide."""

    copies_s: float = 0.0
    """Copies between memory tiers that compute did not hide."""

    update_s: float = 0.0
    """Clipping and the optimizer."""

    bubble_s: float = 0.0
    """Waiting for other ranks' work."""

    data_s: float = 0.0
    """Waiting for the next batch."""

    islands_s: float = 0.0
    """Waiting for other islands."""

    @property
    def total_s(self) -> float:
        """Sum of all terms."""
        return sum(getattr(self, field.name) for field in fields(self))


@dataclass(frozen=True, kw_only=True)
class SequenceGroup:
    """Neighbouring data ranks that hold some packed sequences together for one round."""

    first_rank: int
    size: int
    sequences: tuple[int, ...]
    """Positions in the step's global batch."""

    attention: AttentionScheme = LOCAL
    """How the ranks share attention; its degree is `size`."""

    @property
    def ranks(self) -> range:
        """The ranks of the group."""
        return range(self.first_rank, self.first_rank + self.size)


@dataclass(frozen=True, kw_only=True)
class Round:
    """One forward and backward of every rank. A rank in no group runs it without tokens."""

    groups: tuple[SequenceGroup, ...]

    def group_of(self, data_rank: int) -> SequenceGroup:
        """The group of `data_rank`; alone and without sequences where the plan names none."""
        for group in self.groups:
            if data_rank in group.ranks:
                return group
        return SequenceGroup(first_rank=data_rank, size=1, sequences=())

    def sequences_of(self, data_rank: int) -> tuple[int, ...]:
        """What `data_rank` works on, alone or with others."""
        return self.group_of(data_rank).sequences


@dataclass(frozen=True, kw_only=True)
class OuterPlan:
    """What islands exchange around one step."""

    sends: int | None = None
    """The fragment that leaves after this step's update, if any."""

    merges: int | None = None
    """The fragment that is waited for and merged after it."""

    sent_bytes: int = 0
    """What each rank sends of the fragment that leaves."""


@dataclass(frozen=True, kw_only=True)
class StepPlan:
    """Everything that may differ from step to step. Apart from `compression`, a plan never changes
    the gradient."""

    step: int
    layout: Layout
    rounds: tuple[Round, ...]
    padding: Padding = "rows"
    activation: str = "keep"
    """What happens to the activations of blocks, as `parse_policy` reads it."""

    optimizer: str = "device"
    """Where optimizer states are: `device`, `host`, `interleaved` or `disk`."""

    optimizer_share: float | None = None
    """Share of the states in host memory that the device updates in this step; None leaves it to
    the rates that each rank measures."""

    ring_hosts: tuple[int, ...] = ()
    """Hosts of the island in the order in which rings pass them, those of attention and of what
    replicas send compressed; empty: as they come."""

    host_groups: tuple[tuple[int, ...], ...] = ()
    """Hosts of the island that fast links join: the first of two stages in which rows travel to
    experts. Empty: each host for itself."""

    measure_links: bool = False
    """Whether the links between these hosts are measured again before this step."""

    compression: str = "none"
    """How replicas send gradients: a method and its ratio, rank or format, such as `dgc@0.001`
    (`comms.compression.config.StepChoice`)."""

    replica_bytes: int | None = None
    """Bytes that a rank will send for that; None where nothing is compressed."""

    outer: OuterPlan | None = None
    """What is exchanged with other islands; None where there is one."""

    predicted: Terms = Terms()
    reasons: tuple[str, ...] = ()
    """Why these choices, a sentence each."""

    plan_s: float = 0.0
    """Seconds it took to decide."""

    @property
    def attention(self) -> str:
        """How sequences are shared in this step, for people."""
        schemes = {g.attention for r in self.rounds for g in r.groups if g.size > 1}
        return "; ".join(sorted(map(str, schemes))) or "local"
