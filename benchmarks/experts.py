"""A mixture layer with its experts on several ranks beside the same layer without dispatch.

Forward and backward of each rank's tokens, all contenders alternately in the same processes:

- `alone`: every rank has all experts, nothing travels;
- `dispatch`: experts over all ranks, rows by all-to-all, while the shared expert computes;
- `in_order`: the same, but the shared expert waits until rows are back;
- `staged`: the exchange inside pairs of ranks first and then between them (4 ranks or more);
- `narrow`: tokens travel in `--low` instead of `--width` (BigMac), and `narrow_alone`.

Bytes are those that rank 0's ledger counts. The ranks share this machine's cores, and the link is
memory; `--rate 1gbit` puts half of them on another host behind such a link (needs root).
"""

import json
import time
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.distributed as dist
from torch import Tensor, nn

from benchmarks.harness import Result, options
from benchmarks.linked_ranks import join, start_ranks
from comms.groups import leave
from comms.ledger import Ledger
from parallel.experts.dispatch import ExpertDispatch
from parallel.experts.hosts import host_groups
from parallel.experts.transport import HostGroups
from trainer.model.config import MoeConfig
from trainer.model.moe import MoeFeedForward
from trainer.model.packing import Packing, SequenceWeights

Contender = Callable[[], None]


def main() -> None:
    """Run all ranks, or be one of them."""
    arguments = options(
        __doc__,
        ranks=2,
        tokens=2048,
        width=512,
        low=128,
        inner=512,
        shared=512,
        experts=8,
        top_k=2,
        rounds=9,
        rate="",
        rank=-1,
        address="",
        port=0,
        out="",
    )
    if arguments.rank >= 0:
        _rank(arguments)
        return
    with TemporaryDirectory() as folder:
        out = Path(folder) / "measured.json"
        start_ranks("benchmarks.experts", arguments, out)
        measured = json.loads(out.read_text())
    _result(measured, arguments).show(as_json=arguments.json)


def _result(measured: dict[str, dict[str, list[float]]], arguments: Namespace) -> Result:
    result = Result(name="experts")
    times, sent = measured["seconds"], measured["bytes"]
    tokens = arguments.ranks * arguments.tokens
    for name, seconds in times.items():
        result.braid[f"{name}_tokens_per_s"] = tokens / sorted(seconds)[len(seconds) // 2]
        result.braid[f"{name}_sent_bytes"] = sent[name][0]
    # Throughput per token: the time without dispatch over the time with it.
    result.ratio("dispatch_of_alone", times["alone"], times["dispatch"])
    result.ratio("in_order_of_alone", times["alone"], times["in_order"])
    result.ratio("overlap_gain", times["in_order"], times["dispatch"])
    result.ratio("narrow_of_narrow_alone", times["narrow_alone"], times["narrow"])
    if "staged" in times:
        result.ratio("staged_of_alone", times["alone"], times["staged"])
        result.ratio("staged_of_dispatch", times["dispatch"], times["staged"])
    result.ratio("narrow_bytes", sent["narrow"], sent["dispatch"])
    return result


def _rank(arguments: Namespace) -> None:
    torch.set_num_threads(1)
    join(arguments)
    ledger = Ledger()
    contenders = _contenders(arguments, ledger)
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    sent: dict[str, list[float]] = {}
    for number in range(arguments.rounds + 1):
        for name, step in contenders.items():
            dist.barrier()
            begin_s = time.perf_counter()
            step()
            # The slowest rank counts: they wait for each other in the next layer.
            slowest = torch.tensor([time.perf_counter() - begin_s])
            dist.all_reduce(slowest, op=dist.ReduceOp.MAX)
            rows = sum(n for key, n in ledger.take()[0].items() if not key.endswith("_counts"))
            if number:  # the first round warms caches up
                seconds[name].append(slowest.item())
                sent[name] = [float(rows)]
    if arguments.rank == 0:
        Path(arguments.out).write_text(json.dumps({"seconds": seconds, "bytes": sent}))
    leave()


def _contenders(arguments: Namespace, ledger: Ledger) -> dict[str, Contender]:
    plain = MoeConfig(
        num_experts=arguments.experts,
        top_k=arguments.top_k,
        expert_intermediate_size=arguments.inner,
        shared_intermediate_size=arguments.shared,
    )
    narrow = replace(plain, dispatch_size=arguments.low)
    found = {
        "alone": _step(_layer(plain, arguments), arguments),
        "dispatch": _step(_layer(plain, arguments, ledger), arguments),
        "in_order": _step(_InOrder(_layer(plain, arguments, ledger)), arguments),
        "narrow_alone": _step(_layer(narrow, arguments), arguments),
        "narrow": _step(_layer(narrow, arguments, ledger), arguments),
    }
    hosts = host_groups([range(arguments.ranks)], ranks_per_host=2)
    if hosts is not None:
        found["staged"] = _step(_layer(plain, arguments, ledger, hosts), arguments)
    return found


def _layer(
    moe: MoeConfig,
    arguments: Namespace,
    ledger: Ledger | None = None,
    hosts: HostGroups | None = None,
) -> MoeFeedForward:
    """With a ledger, this rank has its share of the experts."""
    layer = MoeFeedForward(arguments.width, moe)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in list(layer.named_parameters()):
        nn.init.normal_(parameter, std=0.02, generator=generator)
        if ledger is not None and name.startswith("experts."):
            own = parameter.detach().chunk(arguments.ranks)[dist.get_rank()].clone()
            layer.experts.register_parameter(name.removeprefix("experts."), nn.Parameter(own))
    if ledger is not None:
        layer.experts.exchange = ExpertDispatch(
            dist.group.WORLD, num_experts=moe.num_experts, ledger=ledger, hosts=hosts
        )
    return layer


class _InOrder(nn.Module):
    """The layer without its shared expert, and then the shared expert: nothing overlaps."""

    def __init__(self, layer: MoeFeedForward) -> None:
        super().__init__()
        assert layer.shared_experts is not None
        self.shared = layer.shared_experts
        layer.shared_experts = None
        self.layer = layer

    def forward(self, x_TD: Tensor, packing: Packing) -> tuple[Tensor, object]:
        y_TD, stats = self.layer(x_TD, packing)
        return y_TD + self.shared(x_TD), stats


def _step(layer: nn.Module, arguments: Namespace) -> Contender:
    """Forward and backward of this rank's tokens, a different set on every rank."""
    tokens = arguments.tokens
    generator = torch.Generator().manual_seed(1 + dist.get_rank())
    x_TD = torch.randn(tokens, arguments.width, generator=generator).requires_grad_(True)
    sequences = SequenceWeights(
        mean_ST=torch.full((1, tokens), 1 / tokens),
        targets_S=torch.tensor([float(tokens)]),
        real_T=torch.ones(tokens),
    )
    packing = Packing(document_ends=(tokens,), sequences=sequences)

    def step() -> None:
        y_TD, stats = layer(x_TD, packing)
        (y_TD.sum() + stats.aux).backward()
        layer.zero_grad()

    return step


if __name__ == "__main__":
    main()
