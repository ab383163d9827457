"""A parameter as this rank's part of it, and as the whole, whatever shards it."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate

from comms.volume import gather_bytes


def part_of(parameter: Tensor) -> Tensor:
    """This rank's part, sharing the parameter's memory."""
    if isinstance(parameter, DTensor):
        return parameter.to_local().detach()
    return parameter.detach()


def flat_of(parts: Sequence[Tensor]) -> Tensor:
    """Parts one after another as a new fp32 vector."""
    return torch.cat([part.reshape(-1).float() for part in parts])


def views_of(flat: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Views of `flat`, one after another, in the shapes of `like`."""
    pieces = flat.split([tensor.numel() for tensor in like])
    return [piece.view(tensor.shape) for piece, tensor in zip(pieces, like, strict=True)]


def whole_flat(parameters: Sequence[Tensor], flat: Tensor) -> Tensor:
    """The whole of what `flat` holds this rank's parts of, on its device.

    All ranks of the parameters' meshes call it with the same parameters.
    """
    views = views_of(flat, [part_of(parameter) for parameter in parameters])
    return flat_of([_whole(p, view) for p, view in zip(parameters, views, strict=True)])


def parts_flat(parameters: Sequence[Tensor], whole: Tensor) -> Tensor:
    """This rank's parts of a whole vector. Nothing is sent."""
    views = views_of(whole, parameters)
    return flat_of([_part(p, view) for p, view in zip(parameters, views, strict=True)])


def whole_numel(parameters: Sequence[Tensor]) -> int:
    """Elements of the whole parameters."""
    return sum(parameter.numel() for parameter in parameters)


def whole_flat_bytes(parameters: Sequence[Tensor]) -> int:
    """Bytes that this rank sends in `whole_flat`."""
    return sum(
        gather_bytes(4 * parameter.numel(), parameter.device_mesh.size())
        for parameter in parameters
        if isinstance(parameter, DTensor)
    )


def _whole(parameter: Tensor, part: Tensor) -> Tensor:
    if not isinstance(parameter, DTensor):
        return part
    device_part = part.to(parameter.device)
    spread = DTensor.from_local(
        device_part,
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )
    return spread.full_tensor().to(part.device)


def _part(parameter: Tensor, whole: Tensor) -> Tensor:
    if not isinstance(parameter, DTensor):
        return whole
    mesh = parameter.device_mesh
    copies = DTensor.from_local(
        whole.to(parameter.device), mesh, [Replicate()] * mesh.ndim, run_check=False
    )
    return copies.redistribute(mesh, parameter.placements).to_local().to(whole.device)
