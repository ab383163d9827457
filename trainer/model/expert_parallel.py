"""The experts of a decoder over the ranks of an expert axis.

R rows of this rank, S rows that arrive here, E experts, v of them on this rank, D model width,
F expert width.
"""

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from comms.ledger import Ledger
from parallel.experts.dispatch import ExpertDispatch, HostGroups
from parallel.mesh import Meshes
from parallel.tensor.layers import local
from trainer.model.experts import Experts, ExpertsFn
from trainer.model.layers import DecoderLayers


def split_experts(
    model: DecoderLayers, meshes: Meshes, ledger: Ledger, hosts: HostGroups | None = None
) -> None:
    """Cut the experts of a decoder, or of a stage of one, over `ep`; rows then travel to them.

    All ranks call it, after `split_decoder` and before sharding; the model may be on meta. With
    `hosts`, rows travel in two stages. Raises ValueError where the experts do not divide.
    """
    for experts in model.experts:
        dispatch = ExpertDispatch(
            meshes.group("ep"),
            num_experts=experts.gate_up_proj.shape[0],
            ledger=ledger,
            hosts=hosts,
        )
        _cut(experts, meshes)
        experts.apply_experts = _Travelling(dispatch, experts.apply_experts)


class _Travelling:
    """An `ExpertsFn` whose rows meet the weights on the ranks that hold them."""

    def __init__(self, dispatch: ExpertDispatch, apply_experts: ExpertsFn) -> None:
        self._dispatch = dispatch
        self._apply_experts = apply_experts

    def __call__(
        self, x_RD: Tensor, counts_E: Tensor, gate_up_EDF: Tensor, down_EFD: Tensor
    ) -> Tensor:
        def here(x_SD: Tensor, counts_v: Tensor) -> Tensor:
            return self._apply_experts(x_SD, counts_v, local(gate_up_EDF), local(down_EFD))

        return self._dispatch.run(x_RD, counts_E, here)


def _cut(experts: Experts, meshes: Meshes) -> None:
    for name, parameter in list(experts.named_parameters()):
        experts.register_parameter(name, _over_ranks(parameter, meshes))


def _over_ranks(parameter: nn.Parameter, meshes: Meshes) -> nn.Parameter:
    """The parameter with this rank's experts; what `tp` cut before stays cut. Sends nothing."""
    with torch.no_grad():
        if not isinstance(parameter, DTensor):
            spread = distribute_tensor(
                parameter, meshes.experts["ep"], [Shard(0)], src_data_rank=None
            )
            return nn.Parameter(spread)
        mesh = meshes.experts["ep", "tp"]
        mine = parameter.to_local().chunk(meshes.layout.ep)[mesh.get_local_rank("ep")]
        both = DTensor.from_local(
            mine.contiguous(),
            mesh,
            (Shard(0), *parameter.placements),
            run_check=False,
            shape=parameter.shape,
            stride=parameter.stride(),
        )
    return nn.Parameter(both)
