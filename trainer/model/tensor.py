"""A decoder over the ranks of a tensor axis.

T tokens, D model width, k experts per token.

Attention and feed-forward are a region each (`parallel/tensor/axis.py`): query, key, value, gate
and up are cut by their outputs, the projections back by their inputs, experts by their width.
Embedding and output projection are cut by the vocabulary. Norms and routers are whole on all ranks.

Guarantees, each asserted in tests/trainer/model/test_tensor.py:
- losses and gradients are those of one rank, within a relative 1e-5 in fp32;
- losses and the gradients of whole parameters are bitwise the same on all ranks of the axis;
- no parameter is left whose gradient nobody has thought of.
"""

from typing import Any

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from comms.ledger import Ledger
from parallel.tensor.axis import TensorAxis
from parallel.tensor.layers import (
    HALVES_OF_LAST,
    ColumnLinear,
    HeadNorm,
    RowLinear,
    VocabularyEmbedding,
    begin_region_at,
    cut,
    end_region_at,
    local,
)
from trainer.model.blocks import Attention, DecoderBlock
from trainer.model.experts import ExpertsFn
from trainer.model.layers import DecoderLayers
from trainer.model.loss import SplitVocabulary
from trainer.model.moe import MoeFeedForward, Router, Routing
from trainer.model.swiglu import SwiGlu
from trainer.model.tensor_costs import check_tensor_degree

_WHOLE = ("norm.weight", "mlp.gate.weight")


def split_decoder(model: DecoderLayers, mesh: DeviceMesh, ledger: Ledger) -> TensorAxis:
    """Spread a decoder, or a pipeline stage of one, over `mesh`: one axis such as mesh["tp"].

    All ranks of the axis call it, before compilation and sharding; the model may be on meta. They
    then give the model the same tokens, and what they send is counted in `ledger`. Parameters keep
    names and global shapes. Raises ValueError where sizes do not divide, or a parameter is of no
    known kind.

        split_decoder(model, mesh["tp"], ledger)
        loss = model(batch).loss_sum
    """
    axis = TensorAxis(mesh, ledger)
    check_tensor_degree(model.architecture, axis.ranks)
    if model.embed_tokens is not None:
        model.embed_tokens = VocabularyEmbedding(model.embed_tokens, axis)
    if model.lm_head is not None:
        model.lm_head = ColumnLinear(model.lm_head, axis)
    model.vocabulary = SplitVocabulary(axis)
    for block in model.layers:
        _split_block(block, axis)
    _require_all_cut(model)
    return axis


def _split_block(block: DecoderBlock, axis: TensorAxis) -> None:
    _split_attention(block.self_attn, axis)
    if isinstance(block.mlp, SwiGlu):
        _split_swiglu(block.mlp, axis, sums=True)
        begin_region_at(block.mlp, axis)
    else:
        _split_mixture(block.mlp, axis)


def _split_attention(attention: Attention, axis: TensorAxis) -> None:
    attention.q_proj = ColumnLinear(attention.q_proj, axis)
    attention.k_proj = ColumnLinear(attention.k_proj, axis)
    attention.v_proj = ColumnLinear(attention.v_proj, axis)
    attention.o_proj = RowLinear(attention.o_proj, axis)
    attention.output_is_summed = True
    if attention.q_norm is not None and attention.k_norm is not None:
        attention.register_module("q_norm", HeadNorm(attention.q_norm, axis))
        attention.register_module("k_norm", HeadNorm(attention.k_norm, axis))
    begin_region_at(attention, axis)


def _split_swiglu(swiglu: SwiGlu, axis: TensorAxis, *, sums: bool) -> None:
    swiglu.gate_proj = ColumnLinear(swiglu.gate_proj, axis)
    swiglu.up_proj = ColumnLinear(swiglu.up_proj, axis)
    swiglu.down_proj = RowLinear(swiglu.down_proj, axis, sums=sums)


def _split_mixture(mixture: MoeFeedForward, axis: TensorAxis) -> None:
    """One region for routed and shared experts, so that [T, D] is summed once and never the k
    times as many rows of the experts."""
    experts = mixture.experts
    experts.gate_up_proj = cut(experts.gate_up_proj, HALVES_OF_LAST, axis)
    experts.down_proj = cut(experts.down_proj, Shard(1), axis)
    experts.apply_experts = _LocalExperts(experts.apply_experts)
    if mixture.shared_experts is not None:
        _split_swiglu(mixture.shared_experts, axis, sums=False)
    _keep_router_whole(mixture.gate, axis)
    begin_region_at(mixture, axis)
    end_region_at(mixture, axis)


def _keep_router_whole(router: Router, axis: TensorAxis) -> None:
    """The router works alike on all ranks inside the region. Its weights [T, k] multiply partial
    outputs, so their gradient is summed; what it sends back is whole and counts once."""

    def enter(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        return (axis.on_first_rank(arguments[0]), *arguments[1:])

    def leave(_: nn.Module, __: tuple[Any, ...], routing: Routing) -> Routing:
        return routing._replace(weights_Tk=axis.begin_region(routing.weights_Tk))

    router.register_forward_pre_hook(enter)
    router.register_forward_hook(leave)


class _LocalExperts:
    """An `ExpertsFn` that is given cut weights and applies this rank's part of every expert."""

    def __init__(self, apply_experts: ExpertsFn) -> None:
        self._apply_experts = apply_experts

    def __call__(
        self, x_RD: Tensor, counts_E: Tensor, gate_up_EDF: Tensor, down_EFD: Tensor
    ) -> Tensor:
        return self._apply_experts(x_RD, counts_E, local(gate_up_EDF), local(down_EFD))


def _require_all_cut(model: nn.Module) -> None:
    """A whole parameter of no known kind would silently get a part of its gradient in a region."""
    unknown = [
        name
        for name, parameter in model.named_parameters()
        if not isinstance(parameter, DTensor) and not name.endswith(_WHOLE)
    ]
    if unknown:
        raise ValueError(
            f"tensor parallelism does not know what to do with {', '.join(unknown)}; set "
            "parallel.tp to 1, or turn off the model feature that they belong to"
        )
