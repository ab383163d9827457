"""Pure: which layers of a decoder go on which pipeline stage, by their arithmetic."""

from math import prod

from parallel.pipeline.split import split_layers
from trainer.model.config import Architecture
from trainer.model.size import parameter_shapes


def stage_layers(
    architecture: Architecture, stages: int, *, context_tokens: int
) -> tuple[range, ...]:
    """The layers of each stage, so that the dearest stage is as cheap as it can be.

    A layer costs what a token of a document of `context_tokens` computes in it; the last stage also
    has the output projection. Raises ValueError where there are fewer layers than stages.
    """
    a = architecture
    output_flops = 2.0 * a.vocab_size * a.hidden_size
    return split_layers(layer_flops(a, context_tokens), stages, last_cost=output_flops)


def layer_flops(architecture: Architecture, context_tokens: int) -> list[float]:
    """Operations of each layer's forward per token: weights, and half of the context or the window
    as keys of attention."""
    a = architecture
    flops = []
    for layer in range(a.num_layers):
        windowed = a.sliding_window is not None and layer >= a.sliding_window_from_layer
        keys = context_tokens / 2
        if windowed and a.sliding_window is not None:
            keys = min(keys, float(a.sliding_window))
        flops.append(4.0 * keys * a.num_heads * a.resolved_head_dim)
    for name, shape in parameter_shapes(a).items():
        if name.startswith("layers."):
            if a.moe is not None and ".mlp.experts." in name:
                shape = (a.moe.top_k, *shape[1:])
            flops[int(name.split(".")[1])] += 2.0 * prod(shape)
    return flops
