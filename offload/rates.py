"""How fast this host and its device update and copy, measured while both work."""

import time
from collections.abc import Callable

import torch
from torch import Tensor

from offload.adam import AdamRule, adam_update
from offload.host_tensors import HostTensors
from offload.schedule import STATE_BYTES, Rates

RULE = AdamRule(lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01)
REPEATS = 3


def measure_rates(
    device: torch.device,
    parameters: int,
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> Rates:
    """Rates for subgroups of `parameters`; a second or two, and 40 bytes a parameter meanwhile.

    On CUDA the host's rate is taken while states are copied both ways, because host memory is what
    both of them want.
    """
    if device.type != "cuda":
        return Rates(host_parameters_per_s=host_rate(parameters, clock=clock))
    memory = HostTensors(pin=True)
    try:
        return _with_device(device, parameters, memory, clock)
    finally:
        torch.cuda.synchronize(device)
        memory.close()


def host_rate(parameters: int, *, clock: Callable[[], float] = time.perf_counter) -> float:
    """Parameters per second of the host's Adam, by the fastest of a few runs."""
    tensors = _state(parameters, torch.device("cpu"))
    return parameters / min(_adam_s(tensors, clock) for _ in range(REPEATS))


def _with_device(
    device: torch.device, parameters: int, memory: HostTensors, clock: Callable[[], float]
) -> Rates:
    on_host, on_device = _state(parameters, torch.device("cpu")), _state(parameters, device)
    out, back = memory.zeros(3 * parameters), memory.zeros(3 * parameters)
    staged = torch.zeros(2, 3 * parameters, device=device)
    streams = torch.cuda.Stream(device), torch.cuda.Stream(device)
    spans = []
    torch.cuda.synchronize(device)
    for stream, target, source in ((streams[0], staged[0], out), (streams[1], back, staged[1])):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        with torch.cuda.stream(stream):
            begin.record()
            for _ in range(REPEATS):
                target.copy_(source, non_blocking=True)
            end.record()
        spans.append((begin, end))
    host_s = min(_adam_s(on_host, clock) for _ in range(2))
    torch.cuda.synchronize(device)
    copied_bytes = REPEATS * STATE_BYTES * parameters
    fetch_s, flush_s = (begin.elapsed_time(end) / 1000.0 for begin, end in spans)

    def device_adam_s() -> float:
        begin_s = clock()
        _adam_s(on_device, clock)
        torch.cuda.synchronize(device)
        return clock() - begin_s

    return Rates(
        host_parameters_per_s=parameters / host_s,
        device_parameters_per_s=parameters / min(device_adam_s() for _ in range(REPEATS)),
        fetch_bytes_per_s=copied_bytes / fetch_s,
        flush_bytes_per_s=copied_bytes / flush_s,
    )


def _state(parameters: int, device: torch.device) -> list[Tensor]:
    """Master, gradient and moments, all pages touched."""
    return [torch.full((parameters,), 0.5, device=device) for _ in range(4)]


def _adam_s(tensors: list[Tensor], clock: Callable[[], float]) -> float:
    master, gradient, exp_avg, exp_avg_sq = tensors
    begin_s = clock()
    adam_update(
        RULE,
        masters=[master],
        grads=[gradient],
        exp_avgs=[exp_avg],
        exp_avg_sqs=[exp_avg_sq],
        steps=[1.0],
    )
    return clock() - begin_s
