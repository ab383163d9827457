"""Small decoders that write, of every kind that matters to a cache of keys and values."""

from dataclasses import replace

from trainer.model.config import Architecture, MoeConfig, RopeScaling
from trainer.model.decoder import Decoder
from trainer.model.init import init_weights

PLAIN = Architecture(
    vocab_size=67,
    hidden_size=24,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    intermediate_size=40,
    init_std=0.3,
)
ARCHITECTURES = {
    "plain": PLAIN,
    "window": replace(PLAIN, sliding_window=3, sliding_window_from_layer=1),
    "moe": replace(PLAIN, qk_norm=True, moe=MoeConfig(num_experts=4, expert_intermediate_size=9)),
    "yarn": replace(
        PLAIN, rope_scaling=RopeScaling(kind="yarn", factor=4.0, original_context_tokens=8)
    ),
    "tied": replace(PLAIN, tie_embeddings=True, qkv_bias=True, num_kv_heads=4),
}


def make_model(architecture: Architecture = PLAIN, seed: int = 1) -> Decoder:
    """A decoder with weights."""
    model = Decoder(architecture)
    init_weights(model, seed)
    return model
