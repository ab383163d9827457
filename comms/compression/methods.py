"""The method that a configuration names, and what it sends."""

import torch

from comms.compression.config import CompressionConfig
from comms.compression.dense import Dense
from comms.compression.dgc import DeepGradientCompression
from comms.compression.econtrol import ErrorControl
from comms.compression.geometry import Geometry
from comms.compression.method import Method
from comms.compression.momentum import Momentum
from comms.compression.powersgd import PowerSGD
from comms.compression.quantized import QuantizedAllReduce
from comms.volume import all_reduce_bytes


def method_of(config: CompressionConfig) -> Method:
    """The method of `config`."""
    momentum = Momentum(config.momentum, config.nesterov)
    match config.method:
        case "none":
            return Dense(torch.float32, momentum)
        case "fp16":
            return Dense(torch.float16, momentum)
        case "bf16":
            return Dense(torch.bfloat16, momentum)
        case "dgc":
            # Where all is sent, nothing needs masking, and SGD with momentum is what remains.
            if config.ratio == 1:
                return Dense(torch.float32, momentum)
            return DeepGradientCompression(config)
        case "powersgd":
            return PowerSGD(config)
        case "quantized":
            return QuantizedAllReduce(config)
        case _:
            return ErrorControl(config)


def sent_bytes(method: Method, geometry: Geometry, *, ranks: int, ratio: float) -> dict[str, int]:
    """Bytes that one rank sends to the others for one gradient, per operation."""
    found = {"all_reduce": all_reduce_bytes(4 * geometry.dense_numel, ranks)}
    if geometry.matrices:
        for operation, count in method.sent_bytes(geometry, ranks, ratio).items():
            found[operation] = found.get(operation, 0) + count
    return {operation: count for operation, count in found.items() if count}
