"""Pure: which layout a recipe comes to, and whether its model can be cut that way."""

from pathlib import Path

from comms.config import RankEnvironment
from parallel.config import ParallelConfig
from parallel.fit import ModelShape, check_fit
from parallel.layout import Layout, resolve_layout
from parallel.pipeline.schedule import PipelineShape
from parallel.sequence.scheme import possible_schemes
from parallel.sequence.stretches import AttentionScheme
from trainer.config import JobConfig
from trainer.errors import RecipeError
from trainer.model.config import Architecture
from trainer.model.resolve import resolve_architecture
from trainer.model.tensor_costs import check_tensor_degree


def shape_of(architecture: Architecture) -> ModelShape:
    """What of the model can be cut."""
    a, moe = architecture, architecture.moe
    return ModelShape(
        num_layers=a.num_layers,
        num_heads=a.num_heads,
        windowed=a.sliding_window is not None and a.sliding_window_from_layer < a.num_layers,
        tied=a.tie_embeddings,
        expert_counts=tuple(a.experts_of(layer) for layer in a.mixture_layers),
        capacity=moe is not None and moe.capacity_factor is not None,
    )


def choose_layout(
    job: JobConfig,
    architecture: Architecture,
    *,
    world_size: int,
    state_bytes: int,
    device_bytes: int,
    ranks_per_host: int,
) -> Layout:
    """The axis sizes, `auto` resolved. Raises RecipeError where they fit neither each other nor the
    ranks, the model or the longest sequence."""
    shape = shape_of(architecture)
    try:
        layout = resolve_layout(
            job.parallel,
            world_size=world_size,
            state_bytes=state_bytes,
            device_bytes=device_bytes,
            num_experts=shape.expert_counts[0] if shape.expert_counts else 0,
            ranks_per_host=ranks_per_host,
        )
        check_tensor_degree(architecture, layout.tp)
        check_fit(layout, job.parallel, shape)
        _check_longest(job, layout)
    except ValueError as error:
        raise RecipeError(str(error)) from error
    return layout


def require_layout(job: JobConfig, num_ranks: int) -> None:
    """Raise RecipeError where no layout fits, as far as that can be told before ranks have met.

    A model folder that is not on this machine is left to the ranks.
    """
    if job.model.path is not None and not Path(job.model.path).is_dir():
        return
    choose_layout(
        job,
        resolve_architecture(job.model, tokenizer_vocab=1),
        world_size=num_ranks,
        state_bytes=0,
        device_bytes=1,
        ranks_per_host=num_ranks,
    )


def _check_longest(job: JobConfig, layout: Layout) -> None:
    """Whether all ranks that may hold a sequence together can hold the longest."""
    if job.parallel.sp != "auto":
        return
    together = largest_group(layout.data_ranks)
    room = together * job.train.max_tokens_per_device
    if room < job.data.seq_len:
        raise ValueError(
            f"data.seq_len={job.data.seq_len} is longer than the largest sequence group can hold: "
            f"{together} ranks × train.max_tokens_per_device={job.train.max_tokens_per_device} = "
            f"{room}; shorten it, or raise the latter to {-(-job.data.seq_len // together)}"
        )


def largest_group(data_ranks: int) -> int:
    """The largest power of two that divides the data ranks, so that groups are aligned."""
    return data_ranks & -data_ranks


def group_sizes(config: JobConfig, layout: Layout) -> tuple[int, ...]:
    """Sizes that sequence groups may have, ascending."""
    if config.parallel.sp != "auto":
        return (config.parallel.sp,)
    largest = largest_group(layout.data_ranks)
    return tuple(1 << i for i in range(largest.bit_length()))


def pipeline_shape(config: ParallelConfig, layout: Layout) -> PipelineShape:
    """How many stages there are, and which rank holds which."""
    per_rank = {"1f1b": 1, "zero_bubble": 2, "interleaved": config.stages_per_rank}
    return PipelineShape(
        schedule=config.schedule, ranks=layout.pp, stages_per_rank=per_rank[config.schedule]
    )


def attention_schemes(
    config: JobConfig, architecture: Architecture, layout: Layout, environment: RankEnvironment
) -> list[AttentionScheme]:
    """Every scheme that some round may use; groups are made for all of them before the first."""
    return [
        scheme
        for size in group_sizes(config, layout)
        for scheme in possible_schemes(
            size,
            num_heads=architecture.num_heads // layout.tp,
            num_kv_heads=architecture.num_kv_heads // layout.tp,
            windowed=architecture.sliding_window is not None,
            ranks_per_host=pool_ranks_per_host(layout, environment),
        )
    ]


def pool_ranks_per_host(layout: Layout, environment: RankEnvironment) -> int:
    """Ranks of one pool that share a host, where neighbours in rank share hosts."""
    return sum(rank < environment.local_world_size for rank in layout.pool(0)) or 1
