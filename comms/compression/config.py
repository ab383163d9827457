"""How gradients are compressed between replicas. Pure data: neither torch nor ray."""

from dataclasses import dataclass, replace
from typing import Literal, get_args

Method = Literal["none", "fp16", "bf16", "dgc", "econtrol", "ef", "ef21", "powersgd", "quantized"]
Contraction = Literal["top_k", "rand_k", "quantized", "low_rank"]
BlockFormat = Literal["int8", "fp8", "fp4"]
ValueFormat = Literal["fp32", "bf16", "fp16", "int8", "fp8", "fp4"]

DENSE: tuple[Method, ...] = ("none", "fp16", "bf16")
ERROR_CONTROLLED: tuple[Method, ...] = ("econtrol", "ef", "ef21")
WITH_MOMENTUM: tuple[Method, ...] = (*DENSE, "dgc")
WITHOUT_MOMENTUM: tuple[Method, ...] = (*DENSE, *ERROR_CONTROLLED, "powersgd", "quantized")


@dataclass(frozen=True, kw_only=True)
class ReplicaConfig:
    """What travels between replicas instead of the gradients, and what each rank keeps of the
    rest."""

    method: Method = "none"
    """`dgc` for SGD with momentum; the others leave momentum to the optimizer. `none`, `fp16` and
    `bf16` keep nothing."""

    ratio: float = 0.001
    """Share of the entries that `dgc`, `top_k` and `rand_k` send."""

    contraction: Contraction = "top_k"
    """What `econtrol`, `ef` and `ef21` compress with."""

    eta: float | None = None
    """Share of the accumulated error that `econtrol` feeds back each step. It must not exceed what
    the compressor gets through, or errors grow without bound: null is half of `ratio` for `top_k`,
    a quarter for `rand_k`, and 0.1 for `quantized` and `low_rank`."""

    mask_momentum: bool = True
    """Forget the momentum of an entry once it was sent."""

    clip_norm: float | None = None
    """Bound on the norm of the summed gradient, kept locally before anything is accumulated. In a
    recipe, null with `dgc` is optim.max_grad_norm, which then is not applied again."""

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
    """Numbers in which selected entries and factors travel; what rounding takes stays here. For
    the same bytes, `powersgd` comes closer with four times the rank in fp4 than with fp16."""

    dense_below: int = 4096
    """Tensors of fewer elements, and vectors, travel uncompressed in one piece."""

    def __post_init__(self) -> None:
        _one_of("method", self.method, get_args(Method))
        _one_of("contraction", self.contraction, get_args(Contraction))
        _one_of("block_format", self.block_format, get_args(BlockFormat))
        _one_of("values", self.values, get_args(ValueFormat))
        shares = {"ratio": self.ratio, "sample_ratio": self.sample_ratio, "eta": self.eta}
        for name, share in shares.items():
            if share is not None and not 0 < share <= 1:
                raise ValueError(f"{name}={share} must be in (0, 1]; 0.001 to 0.1 are usual.")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ValueError(f"clip_norm={self.clip_norm} must be above 0, or null for none.")
        _at_least("warmup_steps", self.warmup_steps, 0)
        _at_least("dense_steps", self.dense_steps, 0)
        _at_least("warmup_stages", self.warmup_stages, 1)
        _at_least("rank", self.rank, 1)
        _at_least("dense_below", self.dense_below, 0)

    @property
    def compresses(self) -> str:
        """What the entries go through: the method, or the contraction under error control."""
        return self.contraction if self.method in ERROR_CONTROLLED else self.method


@dataclass(frozen=True, kw_only=True)
class CompressionConfig(ReplicaConfig):
    """The same, with what an optimizer and a run add to it."""

    momentum: float = 0.0
    """Momentum that is applied here, before compression; the optimizer then applies none."""

    nesterov: bool = False
    """Whether that momentum is Nesterov's."""

    seed: int = 0
    """Of stochastic rounding and random selection."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum={self.momentum} must be in [0, 1); 0.9 is usual.")
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

    def with_choice(self, choice: "StepChoice") -> "CompressionConfig":
        """This configuration as one step wants it. Raises ValueError where it does not fit."""
        return replace(
            self,
            method=choice.method,
            ratio=self.ratio if choice.ratio is None else choice.ratio,
            rank=self.rank if choice.rank is None else choice.rank,
            block_format=choice.block_format or self.block_format,
        )


@dataclass(frozen=True, kw_only=True)
class StepChoice:
    """What a step may choose anew; None keeps what the configuration says.

    As text it is the method and, behind an @, its ratio, rank or format: `dgc@0.001`,
    `powersgd@rank4`, `quantized@int8`.
    """

    method: Method
    ratio: float | None = None
    rank: int | None = None
    block_format: BlockFormat | None = None

    def __str__(self) -> str:
        rank = None if self.rank is None else f"{_RANK}{self.rank}"
        detail = next((d for d in (self.ratio, rank, self.block_format) if d is not None), None)
        return self.method if detail is None else f"{self.method}@{detail}"

    @classmethod
    def parse(cls, text: str) -> "StepChoice":
        """The choice that was written so. Raises ValueError for other text."""
        name, _, detail = text.partition("@")
        method = next((m for m in get_args(Method) if m == name), None)
        if method is None:
            raise ValueError(f"{text!r} names no method; choose one of {get_args(Method)}.")
        block_format = next((b for b in get_args(BlockFormat) if b == detail), None)
        if not detail or block_format is not None:
            return cls(method=method, block_format=block_format)
        if detail.startswith(_RANK):
            return cls(method=method, rank=int(detail.removeprefix(_RANK)))
        return cls(method=method, ratio=float(detail))


_RANK = "rank"

WHOLE = StepChoice(method="none")
"""Gradients as they are."""


def used_keys(config: ReplicaConfig) -> tuple[str, ...]:
    """Names of the fields that have an effect with this method; only what decides it is read."""
    if config.method == "none":
        return ("method",)
    found = ["method", "dense_below", "clip_norm"]
    if config.method in ERROR_CONTROLLED:
        found.append("contraction")
    if config.method == "econtrol":
        found.append("eta")
    if config.method in (*ERROR_CONTROLLED, "powersgd"):
        found.append("dense_steps")
    if config.method == "dgc":
        found.append("mask_momentum")
    found += _KEYS_OF[config.compresses]
    if "warmup_steps" in found and config.warmup_steps:
        found.append("warmup_stages")
    return tuple(found)


_KEYS_OF: dict[str, tuple[str, ...]] = {
    "fp16": (),
    "bf16": (),
    "dgc": ("ratio", "warmup_steps", "sample_ratio", "values"),
    "top_k": ("ratio", "warmup_steps", "sample_ratio", "values"),
    "rand_k": ("ratio", "warmup_steps", "values"),
    "quantized": ("block_format",),
    "low_rank": ("rank", "values"),
    "powersgd": ("rank", "values"),
}


def compression_of(
    config: ReplicaConfig, *, momentum: float, nesterov: bool, max_grad_norm: float, seed: int
) -> CompressionConfig:
    """What a recipe comes to, with an optimizer of this momentum; reads the keys that have an
    effect, and no others. Raises ValueError where the method does not fit the momentum.

    `dgc` alone applies the momentum itself, and clips by `max_grad_norm` unless told otherwise.
    """
    used = {name: getattr(config, name) for name in used_keys(config)}
    if config.method != "dgc":
        return CompressionConfig(**used, seed=seed)
    if used["clip_norm"] is None:
        used["clip_norm"] = max_grad_norm
    return CompressionConfig(**used, momentum=momentum, nesterov=nesterov, seed=seed)


def choice_at(step: int, config: ReplicaConfig) -> StepChoice:
    """What `step`, counted from 0, sends as `config` asks: whole at first for some methods, then
    with a ratio that falls to its final value."""
    if begins_dense(step, config):
        return WHOLE
    match config.compresses:
        case "dgc" | "top_k" | "rand_k":
            ratio = float(f"{ratio_at(step, config):.3g}")
            return StepChoice(method=config.method, ratio=ratio)
        case "powersgd" | "low_rank":
            return StepChoice(method=config.method, rank=config.rank)
        case "quantized":
            return StepChoice(method=config.method, block_format=config.block_format)
        case _:
            return StepChoice(method=config.method)


def steady(config: CompressionConfig) -> CompressionConfig:
    """The same without a beginning of its own, for steps whose choice comes from outside."""
    return replace(config, warmup_steps=0, dense_steps=0)


def kept_bytes(config: ReplicaConfig) -> int:
    """Bytes that a rank keeps per gradient entry between steps, with the copies that a dropped
    step falls back to."""
    if config.method in DENSE:
        return 0
    return 16 if config.method in ("dgc", "econtrol") else 8


def begins_dense(step: int, config: ReplicaConfig) -> bool:
    """Whether `step`, counted from 0, is sent whole."""
    return step < config.dense_steps and config.method in (*ERROR_CONTROLLED, "powersgd")


def ratio_at(step: int, config: ReplicaConfig) -> float:
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
