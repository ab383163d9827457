"""Pure: which layout a recipe comes to, and whether its model can be cut that way."""

from math import gcd
from pathlib import Path

from parallel.config import ParallelConfig
from parallel.fit import ModelShape, check_fit, stages_per_rank
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
        windowed=a.windowed,
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
            num_experts=gcd(*shape.expert_counts),
            ranks_per_host=ranks_per_host,
        )
        check_tensor_degree(architecture, layout.tp)
        check_fit(layout, job.parallel, shape, job.comms.replica)
        _check_longest(job, architecture, layout, ranks_per_host)
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


def stage_by_rank(config: ParallelConfig, num_ranks: int) -> tuple[int, ...]:
    """Where each rank stands in its pipeline: ranks of one place do the same work in a step."""
    stages = 1 if config.pp == "auto" else config.pp
    in_stage = max(1, num_ranks // (config.island * stages))
    return tuple(rank // in_stage % stages for rank in range(num_ranks))


def _check_longest(
    job: JobConfig, architecture: Architecture, layout: Layout, on_host: int
) -> None:
    """Whether the ranks that may hold a sequence together can hold the longest."""
    sizes = group_sizes(job, architecture, layout, on_host)
    if not sizes:
        raise ValueError(
            f"parallel.sp={job.parallel.sp}: no group of that size can share the attention of this "
            "model, whose windowed layers exchange whole heads; set it to 1 or auto"
        )
    together, tokens = max(sizes), job.train.max_tokens_per_device
    # Ranks that share hold even numbers of tokens.
    room = tokens if together == 1 else together * (tokens // 2 * 2)
    if room < job.data.seq_len:
        raise ValueError(
            f"data.seq_len={job.data.seq_len} is longer than the largest sequence group can hold: "
            f"{together} ranks × train.max_tokens_per_device={tokens} gives room for {room}; "
            f"shorten it, or raise the latter to {-(-job.data.seq_len // (2 * together)) * 2}"
        )


def largest_group(data_ranks: int) -> int:
    """The largest power of two that divides the data ranks, so that groups are aligned."""
    return data_ranks & -data_ranks


def group_sizes(
    job: JobConfig, architecture: Architecture, layout: Layout, ranks_per_host: int
) -> tuple[int, ...]:
    """Sizes that sequence groups may have, ascending: those that can share attention."""
    if job.parallel.sp == "auto":
        wanted = [1 << i for i in range(largest_group(layout.data_ranks).bit_length())]
    else:
        wanted = [job.parallel.sp]
    return tuple(n for n in wanted if _schemes(n, architecture, layout, ranks_per_host))


def pipeline_shape(config: ParallelConfig, layout: Layout) -> PipelineShape:
    """How many stages there are, and which rank holds which."""
    return PipelineShape(
        schedule=config.schedule, ranks=layout.pp, stages_per_rank=stages_per_rank(config)
    )


def attention_schemes(
    job: JobConfig, architecture: Architecture, layout: Layout, ranks_per_host: int
) -> list[AttentionScheme]:
    """Every scheme that some round may use; groups are made for all of them before the first.

    `ranks_per_host` must be the same on all ranks, or they would make different groups.
    """
    sizes = group_sizes(job, architecture, layout, ranks_per_host)
    return [s for n in sizes for s in _schemes(n, architecture, layout, ranks_per_host)]


def _schemes(
    size: int, architecture: Architecture, layout: Layout, ranks_per_host: int
) -> list[AttentionScheme]:
    return possible_schemes(
        size,
        num_heads=architecture.num_heads // layout.tp,
        num_kv_heads=architecture.num_kv_heads // layout.tp,
        windowed=architecture.windowed,
        ranks_per_host=pool_ranks_per_host(layout, ranks_per_host),
    )


def pool_ranks_per_host(layout: Layout, ranks_per_host: int) -> int:
    """Ranks of one pool that share a host, where neighbours in rank share hosts."""
    return sum(rank < ranks_per_host for rank in layout.pool(0)) or 1
