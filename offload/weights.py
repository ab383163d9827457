"""The part of each parameter that this rank owns, as flat tensors."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from offload.subgroups import Segment

FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def local(tensor: Tensor) -> Tensor:
    """This rank's shard of a DTensor; a plain tensor as it is. Shares storage."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def flat(tensor: Tensor) -> Tensor:
    """The local part in one dim, detached, sharing storage."""
    return local(tensor).detach().view(-1)


class Weights:
    """Views of local parameters, taken anew each time: FSDP2 may replace their storage."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters = list(parameters)
        devices = {parameter.device for parameter in parameters}
        if len(devices) != 1:
            raise ValueError(
                "all parameters of one optimizer live on one device, got "
                f"{sorted(map(str, devices))}; make one optimizer per device"
            )
        self.device = devices.pop()
        if self.device.type not in ("cpu", "cuda"):
            raise ValueError(f"parameters must be on cpu or cuda, got {self.device}")
        for number, parameter in enumerate(parameters):
            if parameter.dtype not in FLOATS:
                raise ValueError(f"parameter {number} is {parameter.dtype}, not one of {FLOATS}")
            if not local(parameter).is_contiguous():
                raise ValueError(
                    f"parameter {number} of shape {tuple(parameter.shape)} is not contiguous; "
                    "make it so before building the optimizer"
                )

    def size(self, index: int) -> int:
        """Elements of this rank's part of parameter `index`."""
        return local(self.parameters[index]).numel()

    def segment(self, segment: Segment) -> Tensor:
        """The segment's weights, a view."""
        return flat(self.parameters[segment.parameter])[segment.in_parameter]

    def is_master(self, index: int) -> bool:
        """Whether the weight itself is fp32 in host memory, so that no other copy is kept."""
        return self.device.type == "cpu" and self.parameters[index].dtype == torch.float32
