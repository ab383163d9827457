"""What an optimizer update costs outside device memory.

On any machine: InterleavedAdamW in host memory against torch's fused AdamW (and DeepSpeedCPUAdam
where it is installed), per parameter, alternating; and a dry run that prints the schedule and its
prediction for a rank with given rates. On a CUDA device: the update with a share on the device
against all of it on the host.
"""

import sys
import time
from collections.abc import Callable

import torch
from harness import Result, options
from torch import nn

from offload.optimizer import InterleavedAdamW
from offload.rates import host_rate
from offload.schedule import Rates, balance_share, choose_share, place_subgroups, predict

MILLION = 1_000_000


def main() -> None:
    """Measure and print."""
    chosen = options(
        __doc__,
        millions=20,
        runs=9,
        threads=2,
        dry_billions=5,
        dry_host_gparams=2,
        dry_device_gparams=90,
        dry_copy_gbytes=50,
    )
    torch.set_num_threads(chosen.threads)
    result = Result(name="offload_optimizer")
    _on_host(result, chosen.millions * MILLION, chosen.runs)
    _dry_run(
        result,
        chosen.dry_billions * 1000 * MILLION,
        Rates(
            host_parameters_per_s=chosen.dry_host_gparams * 1e9,
            device_parameters_per_s=chosen.dry_device_gparams * 1e9,
            fetch_bytes_per_s=chosen.dry_copy_gbytes * 1e9,
            flush_bytes_per_s=chosen.dry_copy_gbytes * 1e9,
        ),
    )
    if torch.cuda.is_available():
        _on_device(result, chosen.millions * MILLION, chosen.runs)
    else:
        print("no CUDA device: the interleaved update was not measured", file=sys.stderr)
    result.show(as_json=chosen.json)


def _on_host(result: Result, parameters: int, runs: int) -> None:
    """Seconds of an update per billion parameters, ours and others in turns."""
    updates = {
        "braid": _update(parameters, lambda p: InterleavedAdamW(p, check_finite=False)),
        "torch": _update(parameters, lambda p: torch.optim.AdamW(p, fused=True)),
    }
    deepspeed = _deepspeed_adam()
    if deepspeed is not None:
        updates["deepspeed"] = _update(parameters, deepspeed)
    seconds: dict[str, list[float]] = {name: [] for name in updates}
    for _ in range(runs + 1):
        for name, update in updates.items():
            seconds[name].append(update())
    scale = 1e9 / parameters
    for name in updates:
        seconds[name] = [s * scale for s in seconds[name][1:]]
    result.braid["host_update_s_per_billion"] = _median(seconds["braid"])
    for peer in list(updates)[1:]:
        result.peers[peer] = {"host_update_s_per_billion": _median(seconds[peer])}
        result.ratio(f"host_update_over_{peer}", seconds["braid"], seconds[peer])
    result.braid["host_rate_gparams_per_s"] = host_rate(min(parameters, 10 * MILLION)) / 1e9


def _dry_run(result: Result, parameters: int, rates: Rates) -> None:
    """The schedule that rates like a large host's lead to, and what it would take."""
    sizes = [100 * MILLION] * max(1, parameters // (100 * MILLION))
    device, prediction = choose_share(sizes, rates)
    on_host = predict(sizes, place_subgroups(len(sizes)), rates)
    half = predict(sizes, place_subgroups(len(sizes), device=len(sizes) // 2), rates)
    result.braid |= {
        "dry_subgroups": len(sizes),
        "dry_device_subgroups": device,
        "dry_balance_share": balance_share(rates),
        "dry_update_s": prediction.total_s,
        "dry_update_all_on_host_s": on_host.total_s,
        "dry_update_half_on_device_s": half.total_s,
    }
    places = place_subgroups(len(sizes), device=device)
    letters = "".join(place[0] for place in places)
    print(f"schedule (h on the host, d on the device): {letters}", file=sys.stderr)


def _on_device(result: Result, parameters: int, runs: int) -> None:
    """The update of bf16 weights on the device, gradients already there, by share."""
    for name, share in (("host", 0.0), ("half", 0.5), ("auto", "auto")):
        weights = [
            nn.Parameter(torch.zeros(parameters // 8, dtype=torch.bfloat16, device="cuda"))
            for _ in range(8)
        ]
        optimizer = InterleavedAdamW(weights, share=share, check_finite=False)  # type: ignore[arg-type]
        seconds = []
        for _ in range(runs + 1):
            sum((weight * 1e-3).sum() for weight in weights).backward()  # type: ignore[union-attr]
            torch.cuda.synchronize()
            begin_s = time.perf_counter()
            optimizer.step()
            torch.cuda.synchronize()
            seconds.append(time.perf_counter() - begin_s)
        result.braid[f"device_update_{name}_s"] = _median(seconds[1:])
        result.braid[f"device_update_{name}_share"] = optimizer.share
        optimizer.close()


def _update(
    parameters: int, make: Callable[[list[nn.Parameter]], torch.optim.Optimizer]
) -> Callable[[], float]:
    """A function that makes one update and returns its seconds."""
    weights = [nn.Parameter(torch.full((parameters // 8,), 0.5)) for _ in range(8)]
    gradients = [torch.full_like(weight, 1e-3) for weight in weights]
    optimizer = make(weights)

    def update() -> float:
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = gradient
        begin_s = time.perf_counter()
        optimizer.step()
        return time.perf_counter() - begin_s

    return update


def _deepspeed_adam() -> Callable[[list[nn.Parameter]], torch.optim.Optimizer] | None:
    try:
        from deepspeed.ops.adam import DeepSpeedCPUAdam
    except ImportError:
        print("deepspeed is not installed: not compared", file=sys.stderr)
        return None
    return lambda weights: DeepSpeedCPUAdam(weights, adamw_mode=True)


def _median(values: list[float]) -> float:
    return float(torch.tensor(values, dtype=torch.float64).median())


if __name__ == "__main__":
    main()
