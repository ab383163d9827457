"""How our tensors are named and cut in a Hugging Face folder. Pure.

E experts, D model width, F expert width.

All tensors but the experts' are the same, under `model.`. Experts are stacked here,
`gate_up_proj [E, D, 2F]` and `down_proj [E, F, D]`, and there one matrix each, transposed.
"""

from dataclasses import dataclass

from trainer.model.config import Architecture
from trainer.model.hf_config import Family
from trainer.model.size import parameter_shapes


@dataclass(frozen=True, kw_only=True)
class Piece:
    """One Hugging Face tensor that is (a part of) one of ours."""

    name: str
    shape: tuple[int, ...]
    expert: int | None = None
    """Index into our first dim; the rest is transposed. None: the tensors are equal."""

    first_column: int = 0
    """Where it begins in our last dim."""


def pieces_of(architecture: Architecture, family: Family) -> dict[str, list[Piece]]:
    """For every parameter of ours, the Hugging Face tensors it is made of."""
    return {
        name: _pieces(name, shape, family) for name, shape in parameter_shapes(architecture).items()
    }


def _pieces(name: str, shape: tuple[int, ...], family: Family) -> list[Piece]:
    prefix, _, stacked = name.partition(".mlp.experts.")
    if not stacked:
        return [Piece(name=_plain_name(name, family), shape=shape)]
    mixtral = family == "mixtral"
    prefix = f"model.{prefix}.{'block_sparse_moe' if mixtral else 'mlp'}.experts"
    experts, first, last = shape
    if stacked == "down_proj":
        down = "w2" if mixtral else "down_proj"
        return [
            Piece(name=f"{prefix}.{e}.{down}.weight", shape=(last, first), expert=e)
            for e in range(experts)
        ]
    width = last // 2
    halves = ("w1", "w3") if mixtral else ("gate_proj", "up_proj")
    return [
        Piece(
            name=f"{prefix}.{e}.{half}.weight",
            shape=(width, first),
            expert=e,
            first_column=i * width,
        )
        for e in range(experts)
        for i, half in enumerate(halves)
    ]


def _plain_name(name: str, family: Family) -> str:
    if name == "lm_head.weight":
        return name
    if family == "mixtral":
        name = name.replace(".mlp.gate.", ".block_sparse_moe.gate.")
    return f"model.{name}"
