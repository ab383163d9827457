"""The shape of a decoder. No torch, so that planners and the recipe schema can use it."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """How rotary frequencies are stretched beyond the trained context."""

    kind: Literal["linear", "dynamic", "llama3", "yarn"] = "linear"
    """Rule: `linear` divides positions, `llama3` and `yarn` stretch only low frequencies,
    `dynamic` raises the base once a sequence is longer than the original context."""

    factor: float = 1.0
    """Ratio of the wanted to the original context length."""

    original_context_tokens: int = 8192
    """Context length the weights were trained with."""

    low_freq_factor: float = 1.0
    """llama3: wavelengths above `original_context_tokens / low_freq_factor` are fully stretched."""

    high_freq_factor: float = 4.0
    """llama3: wavelengths below `original_context_tokens / high_freq_factor` are left alone."""

    beta_fast: float = 32.0
    """yarn: rotations over the original context above which a dimension is left alone."""

    beta_slow: float = 1.0
    """yarn: rotations over the original context below which a dimension is fully stretched."""

    attention_factor: float | None = None
    """yarn: multiplier on cos and sin; `null` derives 0.1 ln(factor) + 1."""

    def __post_init__(self) -> None:
        if self.factor < 1.0:
            raise ValueError(f"rope_scaling.factor must be at least 1, got {self.factor}")


@dataclass(frozen=True, kw_only=True)
class MoeConfig:
    """Mixture-of-experts feed-forward layers."""

    num_experts: int = 8
    """Routed experts per layer, or of the largest layer with `pyramid`."""

    pyramid: tuple[int, ...] = ()
    """Routed experts of each mixture layer, from the bottom; empty for `num_experts` in all. More
    at the top, where they help most, saves parameters (DeepSpeed-MoE, arXiv 2201.05596)."""

    top_k: int = 2
    """Routed experts per token."""

    expert_intermediate_size: int = 512
    """Hidden width of one routed expert."""

    shared_intermediate_size: int = 0
    """Total hidden width of the shared experts, which every token visits; 0 for none."""

    residual: bool = False
    """Whether shared and routed experts are weighed against each other for every token, instead
    of added (residual MoE of DeepSpeed-MoE)."""

    dispatch_size: int = 0
    """Width in which tokens travel to experts and back: projected down before, up after, and
    experts work from it (BigMac, arXiv 2502.16927). 0 is the model's width."""

    capacity_factor: float | None = None
    """Rows that an expert takes of one packed sequence, as a multiple of the even share, and at
    least 4; those beyond are dropped and counted. `null` drops none."""

    scoring: Literal["softmax", "sigmoid"] = "softmax"
    """How router logits become expert scores."""

    normalize_top_k: bool = True
    """Whether the weights of the chosen experts are made to sum to one."""

    routed_scale: float = 1.0
    """Multiplier on the routed experts' output."""

    aux_loss_weight: float = 0.01
    """Weight of the load-balancing loss of each packed sequence."""

    z_loss_weight: float = 0.0
    """Weight of the squared log-partition of the router logits."""

    bias_update_rate: float = 0.0
    """Step of the selection bias that balances load without a loss; 0 turns it off."""

    first_dense_layers: int = 0
    """Layers at the bottom that keep a dense feed-forward."""

    every: int = 1
    """Of the layers above those, each `every`-th one is a mixture of experts."""

    def __post_init__(self) -> None:
        if not 1 <= self.top_k <= self.num_experts:
            raise ValueError(
                f"model.moe.top_k={self.top_k} must lie between 1 and num_experts="
                f"{self.num_experts}"
            )
        self._check_variants()
        if self.every < 1:
            raise ValueError(f"model.moe.every must be at least 1, got {self.every}")

    def _check_variants(self) -> None:
        if self.pyramid and (max(self.pyramid) != self.num_experts or min(self.pyramid) < 1):
            raise ValueError(
                f"model.moe.pyramid={list(self.pyramid)} must have the largest number of experts "
                f"equal to num_experts={self.num_experts} and none below 1; set num_experts to "
                f"{max(self.pyramid)}"
            )
        if self.pyramid and self.top_k > min(self.pyramid):
            raise ValueError(
                f"model.moe.top_k={self.top_k} is more than the {min(self.pyramid)} experts of the "
                "smallest layer of pyramid; lower it or raise that layer"
            )
        if self.residual and not self.shared_intermediate_size:
            raise ValueError(
                "model.moe.residual weighs routed against shared experts, but "
                "shared_intermediate_size=0; set it, for instance to expert_intermediate_size="
                f"{self.expert_intermediate_size}"
            )
        if self.dispatch_size < 0:
            raise ValueError(
                f"model.moe.dispatch_size must be a width, or 0 for the model's, got "
                f"{self.dispatch_size}"
            )
        if self.capacity_factor is not None and self.capacity_factor <= 0.0:
            raise ValueError(
                f"model.moe.capacity_factor must be positive, got {self.capacity_factor}; null "
                "drops nothing"
            )


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Everything that fixes a decoder's parameters and arithmetic."""

    vocab_size: int = 0
    """Rows of the embedding; 0 takes the tokenizer's, rounded up to a multiple of 64."""

    hidden_size: int = 256
    """Model width D."""

    num_layers: int = 4
    """Decoder blocks."""

    num_heads: int = 4
    """Query heads."""

    num_kv_heads: int = 4
    """Key and value heads; fewer than `num_heads` is grouped-query attention."""

    head_dim: int = 0
    """Width of one head; 0 takes hidden_size / num_heads."""

    intermediate_size: int = 688
    """Hidden width of the dense feed-forward."""

    rope_theta: float = 10_000.0
    """Base of the rotary frequencies."""

    rope_scaling: RopeScaling | None = None
    """Stretching of the rotary frequencies, if any."""

    max_context_tokens: int = 4096
    """Longest document the positions are meant for."""

    rms_norm_eps: float = 1e-5
    """Added to the mean square before the root."""

    qkv_bias: bool = False
    """Whether query, key and value projections have a bias (Qwen2)."""

    qk_norm: bool = False
    """Whether queries and keys are RMS-normalised per head (Qwen3)."""

    sliding_window: int | None = None
    """Keys a query sees, itself included, in the windowed layers; `null` for all."""

    sliding_window_from_layer: int = 0
    """First windowed layer; those below see everything."""

    tie_embeddings: bool = False
    """Whether the output projection is the embedding."""

    moe: MoeConfig | None = None
    """Mixture-of-experts layers, if any."""

    init_std: float = 0.02
    """Standard deviation of the initial weights."""

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            divisors = [d for d in range(1, self.num_heads + 1) if self.num_heads % d == 0]
            raise ValueError(
                f"model.num_kv_heads={self.num_kv_heads} does not divide num_heads="
                f"{self.num_heads}; choose one of {divisors}"
            )
        if not self.head_dim and self.hidden_size % self.num_heads:
            raise ValueError(
                f"model.hidden_size={self.hidden_size} is not a multiple of num_heads="
                f"{self.num_heads}; change one of them or set model.head_dim"
            )
        if self.resolved_head_dim % 2:
            raise ValueError(
                f"model.head_dim={self.resolved_head_dim} must be even for rotary positions"
            )
        if self.sliding_window is not None and self.sliding_window < 1:
            raise ValueError(f"model.sliding_window must be positive, got {self.sliding_window}")
        mixtures = len(self.mixture_layers)
        if self.moe is not None and self.moe.pyramid and len(self.moe.pyramid) != mixtures:
            raise ValueError(
                f"model.moe.pyramid={list(self.moe.pyramid)} names {len(self.moe.pyramid)} layers, "
                f"but {mixtures} of the {self.num_layers} are mixtures; give one number for each"
            )

    @property
    def resolved_head_dim(self) -> int:
        """Width of one head."""
        return self.head_dim or self.hidden_size // self.num_heads

    def is_moe_layer(self, layer: int) -> bool:
        """Whether block `layer` (0-based) routes its tokens to experts."""
        if self.moe is None or layer < self.moe.first_dense_layers:
            return False
        return (layer - self.moe.first_dense_layers) % self.moe.every == 0

    @property
    def mixture_layers(self) -> tuple[int, ...]:
        """The blocks that route their tokens to experts, from the bottom."""
        return tuple(layer for layer in range(self.num_layers) if self.is_moe_layer(layer))

    @property
    def windowed(self) -> bool:
        """Whether some layer sees a window of keys only."""
        return self.sliding_window is not None and self.sliding_window_from_layer < self.num_layers

    def experts_of(self, layer: int) -> int:
        """Routed experts of block `layer`; 0 where it has none."""
        if self.moe is None or not self.is_moe_layer(layer):
            return 0
        if not self.moe.pyramid:
            return self.moe.num_experts
        return self.moe.pyramid[self.mixture_layers.index(layer)]


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Architecture):
    """The recipe's `model` section: a Hugging Face folder, or an architecture written down."""

    path: str | None = None
    """Hugging Face folder to take architecture, weights and tokenizer from."""

    load_weights: bool = True
    """With `path`: whether its weights are loaded; false trains that architecture from scratch."""
