"""How gradients are compressed between replicas. Pure data: neither torch nor ray."""

from dataclasses import dataclass, replace
from typing import Literal, get_args

Method = Literal["none", "fp16", "bf16", "dgc", "econtrol", "ef", "ef21", "powersgd", "quantized"]
Contraction = Literal["top_k", "rand_k", "quantized", "low_rank"]
BlockFormat = Literal["int8", "fp8", "fp4"]
ValueFormat = Literal["fp32", "bf16", "fp16"]

DENSE: tuple[Method, ...] = ("none", "fp16", "bf16")
ERROR_CONTROLLED: tuple[Method, ...] = ("econtrol", "ef", "ef21")
WITH_MOMENTUM: tuple[Method, ...] = (*DENSE, "dgc")
WITHOUT_MOMENTUM: tuple[Method, ...] = (*DENSE, *ERROR_CONTROLLED, "powersgd", "quantized")


@dataclass(frozen=True, kw_only=True, slots=True)
class CompressionConfig:
    """What travels instead of the gradients, and what each rank keeps of the rest."""

    method: Method = "none"
    """`dgc` for SGD with momentum; the others leave momentum to the optimizer."""

    ratio: float = 0.001
    """Share of the entries that `dgc`, `top_k` and `rand_k` send."""

    contraction: Contraction = "top_k"
    """What `econtrol`, `ef` and `ef21` compress with."""

    eta: float | None = None
    """Share of the accumulated error that `econtrol` feeds back each step. It must not exceed what
    the compressor gets through, or errors grow without bound: null is half of `ratio` for `top_k`,
    a quarter for `rand_k`, and 0.1 for `quantized` and `low_rank`."""

    momentum: float = 0.0
    """Momentum that is applied here, before compression; the optimizer then applies none."""

    nesterov: bool = False
    """Whether that momentum is Nesterov's."""

    mask_momentum: bool = True
    """Forget the momentum of an entry once it was sent."""

    clip_norm: float | None = None
    """Bound on the norm of the summed gradient, kept locally before anything is accumulated."""

    warmup_steps: int = 0
    """Steps over which the ratio falls to its final value, in equal stages."""

    warmup_stages: int = 4
    """Stages of that warm-up; each divides the ratio by the same factor."""

    dense_steps: int = 2
    """First steps that `powersgd`, `econtrol`, `ef` and `ef21` send whole: Adam's second moments,
    begun with compressed gradients, stay too small for hundreds of steps."""

    sample_ratio: float = 0.01
    """Share of the entries from which the threshold is estimated."""

    rank: int = 1
    """Rank of `powersgd` and `low_rank`."""

    block_format: BlockFormat = "int8"
    """Numbers that `quantized` sends, with one scale per block."""

    values: ValueFormat = "fp16"
    """Numbers in which selected entries and factors travel; what rounding takes stays here."""

    dense_below: int = 4096
    """Tensors of fewer elements, and vectors, travel uncompressed in one piece."""

    seed: int = 0
    """Of stochastic rounding and random selection."""

    def __post_init__(self) -> None:
        _one_of("method", self.method, get_args(Method))
        _one_of("contraction", self.contraction, get_args(Contraction))
        _one_of("block_format", self.block_format, get_args(BlockFormat))
        _one_of("values", self.values, get_args(ValueFormat))
        shares = {"ratio": self.ratio, "sample_ratio": self.sample_ratio, "eta": self.eta}
        for name, share in shares.items():
            if share is not None and not 0 < share <= 1:
                raise ValueError(f"{name}={share} must be in (0, 1]; 0.001 to 0.1 are usual.")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum={self.momentum} must be in [0, 1); 0.9 is usual.")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ValueError(f"clip_norm={self.clip_norm} must be above 0, or null for none.")
        _at_least("warmup_steps", self.warmup_steps, 0)
        _at_least("dense_steps", self.dense_steps, 0)
        _at_least("warmup_stages", self.warmup_stages, 1)
        _at_least("rank", self.rank, 1)
        _at_least("dense_below", self.dense_below, 0)
        self._check_momentum()

    def _check_momentum(self) -> None:
        fitting = WITH_MOMENTUM if self.momentum > 0 else WITHOUT_MOMENTUM
        if self.method not in fitting:
            remedy = (
                "Only these apply momentum before they compress"
                if self.momentum > 0
                else "dgc corrects momentum, so it needs the optimizer's, such as momentum=0.9; "
                "without one these fit"
            )
            raise ValueError(
                f"method={self.method} does not fit momentum={self.momentum}. "
                f"{remedy}: {', '.join(fitting)}."
            )

    def fitting_methods(self) -> tuple[Method, ...]:
        """Methods that a step may choose without losing what is accumulated."""
        return WITH_MOMENTUM if self.momentum > 0 else WITHOUT_MOMENTUM

    def with_choice(self, choice: "StepChoice") -> "CompressionConfig":
        """This configuration as one step wants it. Raises ValueError where it does not fit."""
        return replace(
            self,
            method=choice.method,
            ratio=self.ratio if choice.ratio is None else choice.ratio,
            rank=self.rank if choice.rank is None else choice.rank,
            block_format=choice.block_format or self.block_format,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class StepChoice:
    """What a step may choose anew; None keeps what the configuration says."""

    method: Method
    ratio: float | None = None
    rank: int | None = None
    block_format: BlockFormat | None = None


def begins_dense(step: int, config: CompressionConfig) -> bool:
    """Whether `step`, counted from 0, is sent whole."""
    return step < config.dense_steps and config.method in (*ERROR_CONTROLLED, "powersgd")


def check_optimizer(config: CompressionConfig, optimizer: str) -> None:
    """Raise ValueError where the method does not fit the optimizer, naming those that do."""
    if config.momentum > 0 and optimizer != "sgd":
        raise ValueError(
            f"method={config.method} with momentum={config.momentum} applies SGD's momentum "
            f"before it compresses and does not fit optimizer={optimizer}. "
            f"With momentum=0 these fit: {', '.join(WITHOUT_MOMENTUM)}."
        )


def ratio_at(step: int, config: CompressionConfig) -> float:
    """Share of the entries to send at `step`, counted from 0.

    During the warm-up it falls by the same factor in each stage, the sparsity schedule of Deep
    Gradient Compression (arXiv 1712.01887): 0.25, 0.063, 0.016, 0.004, then 0.001.
    """
    if step >= config.warmup_steps:
        return config.ratio
    stage = step * config.warmup_stages // config.warmup_steps
    return float(config.ratio ** ((stage + 1) / (config.warmup_stages + 1)))


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f"{name}={value} must be at least {least}.")


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name}={value} is not known. Choose one of {', '.join(allowed)}.")
