"""The experts of a decoder over the ranks of an expert axis."""

import torch
from torch import nn
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from comms.ledger import Ledger
from parallel.experts.dispatch import ExpertDispatch
from parallel.experts.transport import HostGroups
from parallel.mesh import Meshes
from trainer.model.experts import Experts
from trainer.model.layers import DecoderLayers


def split_experts(
    model: DecoderLayers, meshes: Meshes, ledger: Ledger, hosts: HostGroups | None = None
) -> None:
    """Cut the experts of a decoder, or of a stage of one, over `ep`; rows then travel to them.

    All ranks call it, after `split_decoder` and before sharding; the model may be on meta. With
    `hosts`, rows travel in two stages. Raises ValueError where the experts do not divide.
    """
    for experts in model.experts:
        experts.exchange = ExpertDispatch(
            meshes.group("ep"), num_experts=experts.num_experts, ledger=ledger, hosts=hosts
        )
        _cut(experts, meshes)


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
