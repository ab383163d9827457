"""Rotary positions (arXiv 2104.09864) and the usual ways to stretch them.

T tokens, h half of the head width, d head width.

Nothing is kept between calls: cos and sin follow from the positions, so a model made on the meta
device has no rotary state to restore.
"""

import math

import torch
from torch import Tensor

from trainer.model.config import Architecture, RopeScaling


class Rotary:
    """Angles of one forward, in fp32.

    A plain class: FSDP2's mixed precision casts tensors it finds in tuples and dataclasses.
    """

    def __init__(self, *, cos_Th: Tensor, sin_Th: Tensor) -> None:
        self.cos_Th = cos_Th
        self.sin_Th = sin_Th

    def of(self, rows: slice) -> "Rotary":
        """Angles of some of the tokens."""
        return Rotary(cos_Th=self.cos_Th[rows], sin_Th=self.sin_Th[rows])

    def rotate(self, x_TNd: Tensor) -> Tensor:
        """Rotate each head of queries or keys [T, N, d]; computed in fp32, same dtype out."""
        first, second = x_TNd.float().chunk(2, dim=-1)
        cos, sin = self.cos_Th.unsqueeze(1), self.sin_Th.unsqueeze(1)
        rotated = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
        return rotated.to(x_TNd.dtype)


def rotary(
    architecture: Architecture,
    positions_T: Tensor,
    document_ends: tuple[int, ...],
    stretches: tuple[tuple[int, int], ...] = (),
) -> Rotary:
    """Angles for int64 positions that restart in every document.

    `stretches` [start, stop) say which part of the stream of documents the positions are; empty
    is all of it.
    """
    scaling = architecture.rope_scaling
    device = positions_T.device
    if scaling is not None and scaling.kind == "dynamic":
        frequencies = _dynamic(architecture, scaling, document_ends, device)
        if stretches:
            frequencies = torch.cat([frequencies[start:stop] for start, stop in stretches])
    else:
        frequencies = _frequencies(architecture, scaling, device)
    angles_Th = positions_T.unsqueeze(1).float() * frequencies
    scale = _attention_factor(scaling)
    return Rotary(cos_Th=angles_Th.cos() * scale, sin_Th=angles_Th.sin() * scale)


def _frequencies(
    architecture: Architecture, scaling: RopeScaling | None, device: torch.device
) -> Tensor:
    width = architecture.resolved_head_dim
    plain_h = _plain(architecture.rope_theta, width, device)
    if scaling is None:
        return plain_h
    if scaling.kind == "linear":
        return plain_h / scaling.factor
    if scaling.kind == "llama3":
        return _llama3(plain_h, scaling)
    return _yarn(plain_h, scaling, architecture.rope_theta, width)


def _plain(theta: float, width: int, device: torch.device) -> Tensor:
    exponents_h = torch.arange(0, width, 2, device=device).float() / width
    return 1.0 / theta**exponents_h


def _dynamic(
    architecture: Architecture,
    scaling: RopeScaling,
    document_ends: tuple[int, ...],
    device: torch.device,
) -> Tensor:
    """NTK-aware base per document, so that packing does not change what a document sees."""
    width = architecture.resolved_head_dim
    original, factor = scaling.original_context_tokens, scaling.factor
    frequencies, start = [], 0
    for end in document_ends:
        length = max(end - start, original)
        stretch = factor * length / original - (factor - 1)
        theta = architecture.rope_theta * stretch ** (width / (width - 2))
        frequencies.append(_plain(theta, width, device).expand(end - start, -1))
        start = end
    return torch.cat(frequencies)


def _llama3(plain_h: Tensor, scaling: RopeScaling) -> Tensor:
    """Low frequencies divided by the factor, high ones left alone, a ramp between them."""
    rotations_h = scaling.original_context_tokens * plain_h / (2 * math.pi)
    span = scaling.high_freq_factor - scaling.low_freq_factor
    keep_h = ((rotations_h - scaling.low_freq_factor) / span).clamp(0.0, 1.0)
    return plain_h * keep_h + plain_h / scaling.factor * (1.0 - keep_h)


def _yarn(plain_h: Tensor, scaling: RopeScaling, theta: float, width: int) -> Tensor:
    """arXiv 2309.00071, section 3.2, with the bounds rounded outwards to whole dimensions."""

    def dimension(rotations: float) -> float:
        wavelengths = scaling.original_context_tokens / (rotations * 2 * math.pi)
        return width * math.log(wavelengths) / (2 * math.log(theta))

    low = max(math.floor(dimension(scaling.beta_fast)), 0)
    high = min(math.ceil(dimension(scaling.beta_slow)), width - 1)
    span = high - low or 0.001
    index_h = torch.arange(width // 2, device=plain_h.device).float()
    stretch_h = ((index_h - low) / span).clamp(0.0, 1.0)
    return plain_h / scaling.factor * stretch_h + plain_h * (1.0 - stretch_h)


def _attention_factor(scaling: RopeScaling | None) -> float:
    if scaling is None or scaling.kind != "yarn":
        return 1.0
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    return 0.1 * math.log(scaling.factor) + 1.0
