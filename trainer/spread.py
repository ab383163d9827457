"""Pure: which layout a recipe comes to, and whether its model can be cut that way."""

from parallel.fit import ModelShape, check_fit
from parallel.layout import Layout, resolve_layout
from trainer.config import JobConfig
from trainer.errors import RecipeError
from trainer.model.config import Architecture


def shape_of(architecture: Architecture) -> ModelShape:
    """What of the model can be cut."""
    a, moe = architecture, architecture.moe
    mixtures = [layer for layer in range(a.num_layers) if a.is_moe_layer(layer)]
    return ModelShape(
        num_layers=a.num_layers,
        num_heads=a.num_heads,
        num_kv_heads=a.num_kv_heads,
        intermediate_size=a.intermediate_size,
        vocab_size=a.vocab_size,
        windowed=a.sliding_window is not None and a.sliding_window_from_layer < a.num_layers,
        tied=a.tie_embeddings,
        expert_counts=tuple(moe.num_experts for _ in mixtures) if moe else (),
        expert_intermediate_size=moe.expert_intermediate_size if moe else 0,
        shared_intermediate_size=moe.shared_intermediate_size if moe else 0,
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
        check_fit(layout, job.parallel, shape)
        _check_longest(job, layout)
    except ValueError as error:
        raise RecipeError(str(error)) from error
    return layout


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
    """The largest aligned power of two among the data ranks."""
    return 1 << (data_ranks.bit_length() - 1)
