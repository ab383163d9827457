"""Pure: what a step should take, term by term, and how measured steps correct it.

Guarantees, each asserted in tests/trainer/planner/test_costs.py:
- every predicted term is finite and not negative;
- a measurement that agrees with the prediction changes nothing;
- after measurements of a steady machine, predictions approach them.
"""

from dataclasses import dataclass, replace

from comms.volume import all_reduce_bytes, gather_bytes
from parallel.layout import Layout
from parallel.sequence.scheme import Links
from trainer.planner.plan import Terms

RECOMPUTE_FACTOR = 4.0 / 3.0
"""Forward costs one third of forward and backward; recomputing runs it once more."""

SMOOTHING = 0.2
"""Weight of the newest measurement in a corrected rate."""


@dataclass(frozen=True, kw_only=True)
class AttentionShape:
    """The attention layers of a model as one rank holds them."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    element_bytes: int
    num_layers: int
    windowed: bool
    """Whether some layers see a window of keys only."""


@dataclass(frozen=True, kw_only=True)
class ModelCost:
    """What one step asks of the hardware, from the model's shape."""

    parameters: int
    flops_per_token: float
    """Forward and backward, in a sequence of full length."""

    linear_flops_per_token: float = 0.0
    """Forward and backward of one token, attention to other tokens not counted."""

    quadratic_flops: float = 0.0
    """Forward and backward of attention per squared token of a sequence."""

    attention: AttentionShape
    expert_parameters: int = 0
    """Of the parameters, those of routed experts."""

    sharded: bool
    """Whether parameters are gathered and gradients scattered (FSDP2)."""

    param_bytes: int
    """Bytes of one parameter as it is gathered."""

    reshard_after_forward: bool


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """Rates of one rank, measured at start and corrected while running."""

    peak_flops_per_s: float
    """Fastest matrix product; MFU is relative to it."""

    flops_per_s: float
    """Rate at which forward and backward really run."""

    update_parameters_per_s: float
    """Parameters clipped and stepped per second."""

    link_bytes_per_s: float
    """Payload sent per second and rank in a collective, compute not running."""

    links: Links | None = None
    """Between pairs of ranks; None takes `link_bytes_per_s` for all of them."""

    exposed_fraction: float = 1.0
    """Share of the communication that compute did not hide."""

    bubble_s: float = 0.0
    data_s: float = 0.0


def predict(
    *,
    rank_tokens: int,
    rounds: int,
    recompute: bool,
    layout: Layout,
    model: ModelCost,
    hardware: Hardware,
) -> Terms:
    """Seconds of one step for the rank with the most tokens, `rank_tokens`."""
    flops = (
        rank_tokens
        * model.flops_per_token
        / (layout.tp * layout.pp)
        * (RECOMPUTE_FACTOR if recompute else 1.0)
    )
    communication_s = (
        sent_bytes(rounds=rounds, layout=layout, model=model)
        / hardware.link_bytes_per_s
        * hardware.exposed_fraction
    )
    return Terms(
        compute_s=flops / hardware.flops_per_s,
        communication_s=communication_s,
        update_s=model.parameters
        / (layout.shard * layout.tp * layout.pp)
        / hardware.update_parameters_per_s,
        bubble_s=hardware.bubble_s,
        data_s=hardware.data_s,
    )


def sent_bytes(*, rounds: int, layout: Layout, model: ModelCost) -> int:
    """Payload bytes one rank sends for parameters and gradients of one step."""
    gradient_bytes = 4 * model.parameters
    if layout.hierarchical:
        return _staged_bytes(rounds, layout, model)
    if not model.sharded:
        return all_reduce_bytes(gradient_bytes, layout.replica)
    cut = layout.tp * layout.pp
    dense, experts = model.parameters - model.expert_parameters, model.expert_parameters
    parts = ((dense // cut, layout.shard), (experts // cut // layout.ep, layout.shard // layout.ep))
    sent = sum(_sharded_bytes(count, ranks, rounds, model) for count, ranks in parts)
    held = 4 * (model.parameters // cut // layout.shard)
    return sent + all_reduce_bytes(held, layout.replica)


def replica_bytes(*, layout: Layout, model: ModelCost) -> int:
    """Of these, what is sent between replicas without compression."""
    held = model.parameters // (layout.tp * layout.pp * layout.shard)
    return all_reduce_bytes(4 * held, layout.replica)


def _staged_bytes(rounds: int, layout: Layout, model: ModelCost) -> int:
    """Weights over r_w ranks, gradients over r_g, optimizer states over `shard`: reduced and
    gathered from one width to the next (parallel/hierarchy)."""
    widest = layout.shard
    weights, gradients = layout.shard_weights or widest, layout.shard_gradients or widest
    gathers = 2 if model.reshard_after_forward else 1
    weight_bytes, sum_bytes = model.param_bytes * model.parameters, 4 * model.parameters
    inner, outer = gradients // weights, widest // gradients
    per_round = gathers * gather_bytes(weight_bytes, weights) + gather_bytes(sum_bytes, weights)
    per_round += gather_bytes(sum_bytes // weights, inner)
    per_step = gather_bytes(sum_bytes // gradients, outer)
    per_step += all_reduce_bytes(sum_bytes // widest, layout.replica)
    per_step += gather_bytes(weight_bytes // gradients, outer)
    per_step += gather_bytes(weight_bytes // weights, inner)
    return rounds * per_round + per_step


def _sharded_bytes(parameters: int, ranks: int, rounds: int, model: ModelCost) -> int:
    """Gathers and reduce-scatters of all rounds over `ranks`."""
    gathers = 2 if model.reshard_after_forward else 1
    gathered_bytes = gather_bytes(model.param_bytes * parameters, ranks)
    scattered_bytes = gather_bytes(4 * parameters, ranks)
    return rounds * (gathers * gathered_bytes + scattered_bytes)


def refit(
    hardware: Hardware, *, predicted: Terms, measured: Terms, weight: float = SMOOTHING
) -> Hardware:
    """Rates after one more step, each moved by `weight` towards what explains the measurement."""

    def blend(old: float, new: float) -> float:
        return (1.0 - weight) * old + weight * new

    def correction(predicted_s: float, measured_s: float) -> float:
        if predicted_s <= 0.0 or measured_s <= 0.0:
            return 1.0
        return blend(1.0, measured_s / predicted_s)

    return replace(
        hardware,
        flops_per_s=hardware.flops_per_s / correction(predicted.compute_s, measured.compute_s),
        update_parameters_per_s=hardware.update_parameters_per_s
        / correction(predicted.update_s, measured.update_s),
        exposed_fraction=hardware.exposed_fraction
        * correction(predicted.communication_s, measured.communication_s),
        bubble_s=blend(hardware.bubble_s, measured.bubble_s),
        data_s=blend(hardware.data_s, measured.data_s),
    )
