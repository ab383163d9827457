"""What leaving activations costs, on disk here and in host memory beside a device.

On any machine: decoder blocks whose activations go to disk, against the larger of the same blocks
in memory and their bytes over the disk's rate, alternating; peak memory against its formula; and a
dry run that prints alpha and its predictions for a device with given rates. On a CUDA device: step
time and peak memory of keeping, of full recomputation and of swapping.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import torch
from harness import Result, options
from swap_blocks import (
    Block,
    Run,
    make_blocks,
    plain_run,
    recomputed_run,
    step_seconds,
    swapped_run,
)
from torch import Tensor, nn

from offload.activations.amount import (
    choose_alpha,
    decoder_block_bytes,
    fits,
    peak_memory_bytes,
    predict_swap,
)
from offload.activations.blocks import BlockSwap
from offload.activations.engine import ActivationSwap
from offload.activations.policy import ActivationPolicy
from offload.activations.records import SwapOptions
from offload.activations.rounding import RoundingBuffers
from offload.activations.stores import HostStore
from offload.activations.swap import open_disk_swap
from offload.disk.speed import measure_speed
from offload.memory_plan.requests import lower_bound_bytes
from offload.memory_plan.trace import MemoryTrace

MIB, GIB = 1 << 20, 1 << 30
KEPT_BLOCKS = 1
DRY_WINDOW = 0.3
"""Share of a block that may be leaving or be fetched ahead beyond the block at work."""


def main() -> None:
    """Measure and print."""
    chosen = options(
        __doc__,
        tokens=2048,
        width=512,
        blocks=8,
        rounds=5,
        threads=1,
        dir="",
        gpu_tokens=32768,
        gpu_width=4096,
        gpu_blocks=16,
        gpu_host_gib=64,
        dry_tokens=131072,
        dry_gbytes_per_s=50,
        dry_tflops_per_s=450,
        dry_host_gib=200,
    )
    torch.set_num_threads(chosen.threads)
    result = Result(name="swap")
    _on_disk(result, chosen)
    _dry_run(result, chosen)
    if torch.cuda.is_available():
        _on_device(result, chosen)
    else:
        print("no CUDA device: swapping to host memory was not measured", file=sys.stderr)
    result.show(as_json=chosen.json)


def _on_disk(result: Result, chosen: argparse.Namespace) -> None:
    """Everything swapped: as many bytes as there are, nothing recomputed."""
    torch.manual_seed(0)
    blocks = make_blocks(chosen.blocks, chosen.width).float()
    x_TD = torch.randn(chosen.tokens, chosen.width)
    one = decoder_block_bytes(
        chosen.tokens,
        width=chosen.width,
        kv_width=chosen.width,
        inner_width=4 * chosen.width,
        heads=chosen.width // 64,
        element_bytes=4,
    )
    tuned = SwapOptions(
        min_bytes=min(MIB, one.input_bytes // 2),
        prefetch_bytes=one.total_bytes * 3 // 2,
        max_in_flight_bytes=one.total_bytes * 3 // 2,
    )
    with tempfile.TemporaryDirectory(dir=chosen.dir or None) as folder:
        speed = measure_speed([folder], num_bytes=128 * MIB)
        swap = open_disk_swap(
            [folder],
            capacity_bytes=2 * chosen.blocks * one.total_bytes,
            depth=speed.depth,
            options=tuned,
        )
        try:
            _compare(result, chosen, swap, blocks, x_TD, Path(folder), speed.depth)
        finally:
            swap.close()


def _compare(
    result: Result,
    chosen: argparse.Namespace,
    swap: ActivationSwap,
    blocks: nn.ModuleList,
    x_TD: Tensor,
    folder: Path,
    depth: int,
) -> None:
    policy = ActivationPolicy(kind="swap", alpha=1.0, tier="disk", kept_blocks=KEPT_BLOCKS)
    swapper = BlockSwap({"disk": swap}, num_blocks=chosen.blocks, policy=policy)
    swapped, plain = swapped_run(swapper), plain_run
    step_seconds(blocks, x_TD, swapped), step_seconds(blocks, x_TD, plain)
    step_s, bound_s = [], []
    swap.take_stats()
    for _ in range(chosen.rounds):
        rates = measure_speed([folder], num_bytes=128 * MIB, depths=[depth])
        compute_s = step_seconds(blocks, x_TD, plain)
        step_s.append(step_seconds(blocks, x_TD, swapped))
        stats = swap.take_stats()
        out_s = stats.stored_bytes / rates.write_bytes_per_s
        transfer_s = out_s + stats.fetched_bytes / rates.read_bytes_per_s
        bound_s.append(max(compute_s, transfer_s))
        result.braid |= {
            "in_memory_step_s": compute_s,
            "step_s": step_s[-1],
            "transfer_s": transfer_s,
            "stored_gbytes": stats.stored_bytes / 1e9,
            "stall_out_s": stats.stall_out_s,
            "stall_back_s": stats.stall_back_s,
        }
    peak_bytes, formula_bytes = _peaks(blocks, x_TD, swapped, swap)
    in_memory_bytes, _ = _peaks(blocks, x_TD, plain, swap)
    result.braid |= {
        "peak_mib": peak_bytes / MIB,
        "formula_peak_mib": formula_bytes / MIB,
        "in_memory_peak_mib": in_memory_bytes / MIB,
    }
    result.ratio("step_over_bound", step_s, bound_s)
    result.ratio("peak_over_formula", [peak_bytes], [formula_bytes])


def _peaks(blocks: nn.ModuleList, x_TD: Tensor, run: Run, swap: ActivationSwap) -> tuple[int, int]:
    """Bytes of all tensors made in one step that live at one time: counted, and by the formula."""
    swap.take_stats()
    whole = MemoryTrace()
    with whole:
        step_seconds(blocks, x_TD, run)
    stats = swap.take_stats()
    first = blocks[0]
    assert isinstance(first, Block)
    alone = MemoryTrace()
    with alone:
        y_TD = first.parts().plain(x_TD * 1.0)
        assert isinstance(y_TD, Tensor)
        dy_TD = torch.ones_like(y_TD)
    begin = alone.now
    with alone:
        y_TD.backward(dy_TD)
    gradient_bytes = sum(p.nbytes for p in first.parameters())
    first.zero_grad()
    saved = [r for r in alone.requests() if r.begin < begin < r.end]
    made = [r for r in alone.requests() if r.begin >= begin]
    formula = peak_memory_bytes(
        kept_bytes=KEPT_BLOCKS * sum(r.size_bytes for r in saved),
        in_flight_bytes=stats.in_flight_peak_bytes,
        fetched_bytes=stats.fetched_peak_bytes,
        gradient_bytes=(len(blocks) - 1) * gradient_bytes,
        transient_bytes=lower_bound_bytes(made),
    )
    return lower_bound_bytes(whole.requests()), formula


def _dry_run(result: Result, chosen: argparse.Namespace) -> None:
    """Alpha for a 7 B decoder in bf16 on a device with the given rates."""
    tokens, width, inner, heads, blocks = chosen.dry_tokens, 4096, 11008, 32, 32
    block = decoder_block_bytes(tokens, width=width, kv_width=width, inner_width=inner, heads=heads)
    tokenwise_flops = 2.0 * tokens * (4 * width * width + 3 * width * inner)
    attention_flops = 2.0 * tokens * tokens * width
    flops_per_s = chosen.dry_tflops_per_s * 1e12
    rates = {
        "forward_s": (tokenwise_flops + attention_flops) / flops_per_s,
        "bytes_per_s": chosen.dry_gbytes_per_s * 1e9,
    }
    tier_bytes = chosen.dry_host_gib * GIB
    room = {"blocks": blocks, "kept_blocks": 0}
    alpha = choose_alpha(block, tier_bytes=tier_bytes, **room, **rates)
    tokenwise_s = tokenwise_flops / flops_per_s
    found = predict_swap(
        block,
        alpha,
        tokenwise_s=tokenwise_s,
        window_bytes=DRY_WINDOW * block.total_bytes,
        **room,
        **rates,
    )
    # Full recomputation keeps one input per block, and runs each block's forward once more.
    recompute_s = blocks * 4 * rates["forward_s"]
    recompute_bytes = blocks * block.input_bytes + block.total_bytes
    result.braid |= {
        "dry_alpha": alpha,
        "dry_fits": float(fits(block, alpha, tier_bytes=tier_bytes, **room)),
        "dry_step_s": found.step_s,
        "dry_exposed_s": found.exposed_s,
        "dry_recomputed_s": found.recompute_s,
        "dry_peak_gib": found.peak_bytes / GIB,
        "dry_full_recompute_step_s": recompute_s,
        "dry_full_recompute_peak_gib": recompute_bytes / GIB,
        "dry_throughput_over_full_recompute": recompute_s / found.step_s,
        "dry_tokens_at_equal_memory": recompute_bytes / found.peak_bytes,
    }


def _on_device(result: Result, chosen: argparse.Namespace) -> None:
    """Step time and peak memory, keeping, recomputing and swapping, in turns."""
    blocks = make_blocks(chosen.gpu_blocks, chosen.gpu_width).to("cuda", torch.bfloat16)
    x_TD = torch.randn(chosen.gpu_tokens, chosen.gpu_width, device="cuda", dtype=torch.bfloat16)
    buffers = RoundingBuffers()
    swap = ActivationSwap(HostStore(chosen.gpu_host_gib * GIB, pin=True), targets=buffers)
    weights_bytes = torch.cuda.memory_allocated()
    runs: dict[str, Run] = {"recompute": recomputed_run}
    for alpha in (0.0, 0.5, 1.0):
        policy = ActivationPolicy(kind="swap", alpha=alpha, kept_blocks=0)
        swapper = BlockSwap({"host": swap}, num_blocks=chosen.gpu_blocks, policy=policy)
        runs[f"swap_{alpha:g}"] = swapped_run(swapper)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(chosen.rounds + 2):
        for name, run in runs.items():
            torch.cuda.reset_peak_memory_stats()
            elapsed_s = step_seconds(blocks, x_TD, run)
            if turn >= 2:
                seconds[name].append(elapsed_s)
                peak_bytes = torch.cuda.max_memory_allocated() - weights_bytes
                result.braid[f"device_{name}_peak_gib"] = peak_bytes / GIB
    for name in runs:
        result.braid[f"device_{name}_s"] = sorted(seconds[name])[len(seconds[name]) // 2]
        result.ratio(f"device_recompute_over_{name}", seconds["recompute"], seconds[name])
        peak_gib = result.braid[f"device_{name}_peak_gib"]
        tokens = result.braid["device_recompute_peak_gib"] / peak_gib
        result.braid[f"device_{name}_tokens_at_equal_memory"] = tokens
    result.braid["device_buffers_gib"] = buffers.size_bytes / GIB
    swap.close()


if __name__ == "__main__":
    main()
