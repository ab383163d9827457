"""One small all-reduce per step by which the ranks of an island agree what happened, and what comes
next."""

import math
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from comms.ledger import Ledger
from comms.volume import all_reduce_bytes

_BAD_LOSS, _BAD_GRADIENT = 1.0, 2.0
"""What a rank's place in a vote says of its health; 0 where all is well."""


@dataclass(frozen=True, kw_only=True)
class Ballot:
    """What one rank knows after its last backward."""

    step: int
    loss_sum: float
    """Sum of this rank's token losses."""

    aux_sum: float
    squared_norm: float
    """Of gradients that already are sums over ranks; this rank's share of the global norm."""

    stop: bool
    """Whether this rank was asked to stop after this step."""

    save: bool
    """Whether this rank's clock says that a checkpoint is due."""

    expert_load: Tensor
    """float32 [layers, experts], tokens this rank sent to each expert."""

    dropped: float = 0.0
    """Of these, tokens that experts had no room for."""

    bad_gradient: bool = False
    """Whether this rank saw its own gradient become something that is not finite."""

    heard_stop: bool = False
    heard_save: bool = False
    """What the first rank of an island heard from all islands; False elsewhere."""

    regroup: bool = False
    """Whether this rank was asked to leave at a step that is in memory, for another set of ranks to
    go on."""

    in_memory: bool = False
    """Whether this rank will have this step in memory."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The same on every rank of an island."""

    loss_sum: float
    aux_sum: float
    grad_norm: float
    stop: bool
    save: bool
    expert_load: Tensor
    """float32 [layers, experts], over all ranks."""

    dropped: float
    """Of these assignments, those that experts had no room for."""

    heard_stop: bool
    heard_save: bool
    """What all islands agreed on some steps ago; False where there is one."""

    regroup: bool
    """Whether some rank was asked to leave for another set of ranks."""

    in_memory: bool
    """Whether all ranks will have this step in memory."""

    bad_ranks: tuple[int, ...]
    """Ranks whose own losses are not finite; none where only the summed gradient is not."""

    bad_gradients: tuple[int, ...] = ()
    """Ranks whose own gradients are not finite; ranks that share a sequence may share that."""

    vetoed: bool = False
    """Whether the update is not made although everything is finite."""

    @property
    def commit(self) -> bool:
        """Whether the update is made."""
        return self.finite and not self.vetoed

    @property
    def finite(self) -> bool:
        """Whether losses and gradients are."""
        return math.isfinite(self.loss_sum + self.aux_sum) and math.isfinite(self.grad_norm)


def vote(
    ballot: Ballot,
    *,
    rank: int,
    world_size: int,
    first_rank: int = 0,
    group: dist.ProcessGroup | None = None,
    ledger: Ledger | None = None,
) -> Verdict:
    """Add up the ballots of an island: of `group`, where this is `rank` of `world_size` and
    `first_rank` the world rank of the first. Every rank of it calls it once per step, after
    gradients are summed. `group` carries CPU tensors; None is the default one.

    Raises RuntimeError where ranks are not at the same step: then their collectives no longer
    belong together, and nothing computed since can be trusted.
    """
    scalars = _scalars(ballot)
    health = torch.zeros(world_size, dtype=torch.float64)
    # The gradients are sums already: one rank's NaN is in everybody's norm, but in its loss alone.
    if not math.isfinite(ballot.loss_sum + ballot.aux_sum):
        health[rank] = _BAD_LOSS
    elif ballot.bad_gradient:
        health[rank] = _BAD_GRADIENT
    load = ballot.expert_load.to("cpu", torch.float64)
    urn = torch.cat([scalars, health, load.flatten()])
    if world_size > 1:
        group = dist.group.WORLD if group is None else group
        assert group is not None
        ledger = Ledger() if ledger is None else ledger
        sent_bytes = all_reduce_bytes(urn.nbytes, world_size)
        with ledger.recorded("vote", "all_reduce", sent_bytes, group):
            dist.all_reduce(urn, group=group)
    scalar_count = scalars.numel()
    sums = urn[:scalar_count].tolist()
    loss_sum, aux_sum, squared_norm, stop, save, steps, squares, dropped, *heard = sums
    health_sums = urn[scalar_count : scalar_count + world_size].tolist()
    if steps != world_size * ballot.step or squares != world_size * ballot.step**2:
        raise RuntimeError(
            f"ranks disagree on the step: rank {first_rank + rank} is at {ballot.step}, the mean "
            f"is {steps / world_size}"
        )
    return Verdict(
        loss_sum=loss_sum,
        aux_sum=aux_sum,
        grad_norm=math.sqrt(squared_norm) if squared_norm >= 0 else math.nan,
        stop=stop > 0,
        save=save > 0,
        expert_load=urn[scalar_count + world_size :].view(load.shape).float(),
        dropped=dropped,
        heard_stop=heard[0] > 0,
        heard_save=heard[1] > 0,
        regroup=heard[2] > 0,
        in_memory=heard[3] == world_size,
        bad_ranks=_ranks_with(_BAD_LOSS, health_sums, first_rank),
        bad_gradients=_ranks_with(_BAD_GRADIENT, health_sums, first_rank),
    )


def _ranks_with(health: float, sums: list[float], first_rank: int) -> tuple[int, ...]:
    return tuple(first_rank + r for r, found in enumerate(sums) if found == health)


def _scalars(ballot: Ballot) -> Tensor:
    return torch.tensor(
        [
            ballot.loss_sum,
            ballot.aux_sum,
            ballot.squared_norm,
            float(ballot.stop),
            float(ballot.save),
            float(ballot.step),
            float(ballot.step) ** 2,
            ballot.dropped,
            float(ballot.heard_stop),
            float(ballot.heard_save),
            float(ballot.regroup),
            float(ballot.in_memory),
        ],
        dtype=torch.float64,
    )
