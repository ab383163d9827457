"""Pure: whether a model can be cut as a layout says, told before anything starts.

Guarantee, asserted in tests/parallel/test_fit.py: whatever is refused is refused with the key, its
value, the rule, and the values that would do.
"""

from dataclasses import dataclass

from comms.compression.config import ReplicaConfig
from parallel.config import ParallelConfig
from parallel.layout import Layout, divisors

_WHOLE = ReplicaConfig()


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """What of a model can be cut."""

    num_layers: int
    num_heads: int
    windowed: bool
    """Whether some layers see a window of keys only."""

    tied: bool
    """Whether the output projection is the embedding."""

    expert_counts: tuple[int, ...] = ()
    """Routed experts of each mixture layer."""

    capacity: bool = False
    """Whether experts refuse rows beyond a capacity per sequence."""


def check_fit(
    layout: Layout,
    config: ParallelConfig,
    shape: ModelShape,
    replica: ReplicaConfig = _WHOLE,
) -> None:
    """Raise ValueError where the layout does not fit the model or the way in which replicas
    compress gradients, or two axes exclude each other."""
    _check_experts(layout.ep, shape)
    _check_pipeline(layout, config, shape)
    _check_sequence(layout, config.sp, shape)
    _check_together(layout)
    _check_islands(layout, config)
    if replica.method != "none":
        _check_compression(layout, config, replica)


def stages_per_rank(config: ParallelConfig) -> int:
    """Pipeline stages on each rank under the schedule."""
    if config.schedule == "interleaved":
        return config.stages_per_rank
    return 2 if config.schedule == "zero_bubble" else 1


def _must_divide(axis: str, degree: int, number: int, what: str) -> None:
    if number % degree:
        raise ValueError(
            f"parallel.{axis}={degree} does not divide {what}={number}; choose one of "
            f"{divisors(number)}"
        )


def _check_experts(ep: int, shape: ModelShape) -> None:
    if ep == 1:
        return
    if not shape.expert_counts:
        raise ValueError(
            f"parallel.ep={ep}, but the model has no experts; set it to 1 or give model.moe"
        )
    for count in sorted(set(shape.expert_counts)):
        _must_divide("ep", ep, count, "model.moe.num_experts")


def _check_pipeline(layout: Layout, config: ParallelConfig, shape: ModelShape) -> None:
    if layout.pp == 1:
        return
    chunks = layout.pp * stages_per_rank(config)
    if chunks > shape.num_layers:
        raise ValueError(
            f"parallel.pp={layout.pp} with schedule {config.schedule} needs {chunks} stages, but "
            f"model.num_layers={shape.num_layers}; choose pp of at most "
            f"{max(1, shape.num_layers * layout.pp // chunks)}"
        )
    if shape.tied:
        raise ValueError(
            f"parallel.pp={layout.pp} puts the embedding and the output projection on different "
            "ranks, but model.tie_embeddings makes them one; untie them or set pp to 1"
        )


def _check_sequence(layout: Layout, sp: int | str, shape: ModelShape) -> None:
    if sp == 1:
        return
    if shape.capacity:
        raise ValueError(
            f"parallel.sp={sp} spreads a sequence over ranks, but model.moe.capacity_factor bounds "
            "what experts take of a whole one; set the latter to null or sp to 1"
        )
    if sp == "auto":
        return
    assert isinstance(sp, int)
    _must_divide("sp", sp, layout.data_ranks, "parallel.replica × parallel.shard")
    if sp & (sp - 1):
        powers = [d for d in divisors(layout.data_ranks) if not d & (d - 1)]
        raise ValueError(
            f"parallel.sp={sp} is not a power of two, so its groups cannot be aligned to hosts; "
            f"choose one of {powers}"
        )
    heads = shape.num_heads // layout.tp
    if shape.windowed and heads % sp:
        raise ValueError(
            f"parallel.sp={sp} does not divide the {heads} query heads of a rank, which windowed "
            f"layers need: only whole heads can be exchanged there; choose one of {divisors(heads)}"
        )


def _check_together(layout: Layout) -> None:
    if not layout.hierarchical:
        return
    for axis, degree in (("ep", layout.ep), ("tp", layout.tp), ("pp", layout.pp)):
        if degree > 1:
            raise ValueError(
                f"parallel.shard_weights and shard_gradients do not work with parallel.{axis}="
                f"{degree}; set {axis} to 1, or leave both widths at auto and shard over "
                f"{layout.shard} ranks (parallel.shard={layout.shard})"
            )


def _check_islands(layout: Layout, config: ParallelConfig) -> None:
    if layout.island > 1 and config.rebalance_interval_steps:
        raise ValueError(
            f"parallel.rebalance_interval_steps={config.rebalance_interval_steps} moves experts by "
            f"the loads of one island, but parallel.island={layout.island} islands exchange "
            "experts by their place; set it to 0, or parallel.island to 1"
        )


def _check_compression(layout: Layout, config: ParallelConfig, replica: ReplicaConfig) -> None:
    key = f"comms.replica.method={replica.method}"
    if layout.replica == 1:
        raise ValueError(
            f"{key} compresses gradients between replicas, but this layout has one "
            f"({layout.describe()}); set parallel.replica to 2 or more, one per host where links "
            "between hosts are slow, or the method to none"
        )
    if layout.hierarchical:
        raise ValueError(
            f"{key} does not work with parallel.shard_weights and shard_gradients; leave both at "
            f"auto (parallel.replica={layout.replica}, parallel.shard={layout.shard}), or set the "
            "method to none"
        )
    if config.rebalance_interval_steps and layout.ep > 1:
        raise ValueError(
            f"{key} keeps what it has not sent where experts are, so they must not move, but "
            f"parallel.rebalance_interval_steps={config.rebalance_interval_steps}; set that to 0, "
            "or the method to none"
        )
    if layout.tp > 1 and (replica.method == "dgc" or replica.clip_norm is not None):
        what = key if replica.method == "dgc" else f"comms.replica.clip_norm={replica.clip_norm}"
        raise ValueError(
            f"{what} clips what each rank holds, and ranks of parallel.tp={layout.tp} hold some "
            "tensors alike; set tp to 1, or use econtrol without comms.replica.clip_norm"
        )
