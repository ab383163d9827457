"""Attention of one long sequence over ranks, forward and backward, beside torch's ring and Ulysses.

All contenders run alternately in the same processes. `--rate 1gbit` puts half of the ranks on
another host behind such a link (needs root), and shows how much of the ring's transfer is hidden.
`deepspeed`, where it is installed, runs its own Ulysses layer; otherwise a plain one stands in.
"""

import json
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.harness import Result, options
from benchmarks.linked_ranks import join, start_ranks
from benchmarks.sequence_peers import run_torch_ring, run_ulysses, ulysses_peer
from comms.groups import leave
from comms.ledger import Ledger
from parallel.attention import packed_attention
from parallel.sequence.attention import SequenceAttention
from parallel.sequence.communicators import make_communicators
from parallel.sequence.scheme import AttentionScheme, Links, attention_bytes, choose_scheme

ROOT = Path(__file__).resolve().parents[1]
Run = Callable[[], object]
Times = dict[str, list[float]]


def schemes_of(ranks: int, hosts: int) -> dict[str, AttentionScheme]:
    """What is measured of ours."""
    found = {
        "ring": AttentionScheme(ring=ranks),
        "ring_queries": AttentionScheme(ring=ranks, backward="queries"),
        "ulysses": AttentionScheme(ulysses=ranks),
    }
    if ranks >= 4:
        found["ulysses_ring"] = AttentionScheme(ulysses=2, ring=ranks // 2)
        found["ulysses_ring_queries"] = replace(found["ulysses_ring"], backward="queries")
    if hosts > 1 and ranks > 2:
        found["double_ring"] = AttentionScheme(ring=ranks, hosts=hosts)
    return found


def rates(arguments: Namespace) -> tuple[float, float]:
    """FLOP/s of one rank's forward, and bytes per second to the farthest rank. All ranks call."""
    tokens, heads, width = arguments.tokens // arguments.ranks, arguments.heads, arguments.width
    q = torch.randn(tokens, heads, width)
    begin_s = time.perf_counter()
    packed_attention(q, q, q, document_ends=(tokens,), window=None)
    flops_per_s = 2 * tokens**2 * heads * width / (time.perf_counter() - begin_s)
    message = torch.zeros(1 << 22, dtype=torch.uint8)
    far = arguments.ranks // 2
    dist.barrier()
    begin_s = time.perf_counter()
    if arguments.rank == 0:
        dist.send(message, far)
        dist.recv(message, far)
    elif arguments.rank == far:
        dist.recv(message, 0)
        dist.send(message, 0)
    bytes_per_s = 2 * message.numel() / (time.perf_counter() - begin_s)
    found = torch.tensor([flops_per_s, bytes_per_s], dtype=torch.float64)
    dist.broadcast(found, 0)
    return found[0].item(), found[1].item()


def choice(arguments: Namespace, flops_per_s: float, bytes_per_s: float) -> AttentionScheme:
    """What a run would use here, by the measured rates."""
    links = Links(
        inside_bytes_per_s=bytes_per_s,
        between_bytes_per_s=bytes_per_s,
        overlap=1.0 if arguments.rate else 0.0,
    )
    scheme, reason = choose_scheme(
        arguments.tokens,
        arguments.ranks,
        num_heads=arguments.heads,
        num_kv_heads=arguments.kv_heads,
        head_dim=arguments.width,
        element_bytes=4,
        links=links,
        flops_per_s=flops_per_s,
        windowed=False,
        ranks_per_host=arguments.ranks,
    )
    print(f"chosen at {flops_per_s:.3g} FLOP/s, {bytes_per_s:.3g} B/s: {reason}", file=sys.stderr)
    return scheme


def worker(arguments: Namespace) -> None:
    """One rank: run every contender in turn, and write the times of the slowest rank."""
    torch.set_num_threads(1)
    join(arguments)
    runs, ledgers = contenders(arguments)
    measured = rates(arguments)
    times: Times = {name: [] for name in runs}
    waited: Times = {name: [] for name in ledgers}
    for round_number in range(arguments.rounds + 1):
        for name, run in runs.items():
            seconds = slowest(run)
            waiting_s = ledgers[name].take()[1] if name in ledgers else 0.0
            if round_number:  # the first one touches memory and makes connections
                times[name].append(seconds)
                if name in ledgers:
                    waited[name].append(waiting_s)
    if arguments.rank == 0:
        Path(arguments.out).write_text(
            json.dumps({"times": times, "waited": waited, "rates": measured})
        )
    leave()


def contenders(arguments: Namespace) -> tuple[dict[str, Run], dict[str, Ledger]]:
    """Forward and backward of each on this rank's share, and the ledgers of ours."""
    ranks, tokens = arguments.ranks, arguments.tokens
    generator = torch.Generator().manual_seed(arguments.rank)
    shapes = [arguments.heads, arguments.kv_heads, arguments.kv_heads, arguments.heads]
    q, k, v, grad = (
        torch.randn(tokens // ranks, n, arguments.width, generator=generator) for n in shapes
    )
    inputs = q.requires_grad_(True), k.requires_grad_(True), v.requires_grad_(True)
    schemes = schemes_of(ranks, 2 if arguments.rate else 1)
    communicators = make_communicators(range(ranks), [], schemes.values())
    ledgers = {name: Ledger() for name in schemes}

    def own(name: str) -> Run:
        attention = SequenceAttention(
            communicators.of(schemes[name]), schemes[name], ledger=ledgers[name]
        )

        def run() -> tuple[Tensor, ...]:
            out = attention(*inputs, document_ends=(tokens,), window=None)
            return torch.autograd.grad(out, inputs, grad)

        return run

    peer_name, layer = ulysses_peer()
    runs: dict[str, Run] = {name: own(name) for name in schemes}
    runs[peer_name] = lambda: run_ulysses(layer, inputs, grad)
    for rotation in ("allgather", "alltoall"):
        runs[f"torch_ring_{rotation}"] = lambda r=rotation: run_torch_ring(inputs, grad, r)  # type: ignore[misc]
    return runs, ledgers


def slowest(run: Run) -> float:
    """Seconds until the last rank is done."""
    dist.barrier()
    begin_s = time.perf_counter()
    run()
    seconds = torch.tensor(time.perf_counter() - begin_s, dtype=torch.float64)
    dist.all_reduce(seconds, op=dist.ReduceOp.MAX)
    return seconds.item()


def report(arguments: Namespace, times: Times, waited: Times, chosen: AttentionScheme) -> Result:
    """Medians, bytes, and ours over the best peer, round by round."""
    result = Result(name="sequence")
    for name, scheme in schemes_of(arguments.ranks, 2 if arguments.rate else 1).items():
        own = times.pop(name)
        sent = attention_bytes(
            arguments.tokens,
            scheme,
            num_heads=arguments.heads,
            num_kv_heads=arguments.kv_heads,
            head_dim=arguments.width,
            element_bytes=4,
        )
        result.braid |= {
            f"{name}/s": sorted(own)[len(own) // 2],
            f"{name}/min_s": min(own),
            f"{name}/waited_s": sorted(waited[name])[len(own) // 2],
            f"{name}/sent_mb": (sent.forward + sent.backward) / 1e6,
        }
        waited[name] = own
    for name, theirs in times.items():
        median_s = sorted(theirs)[len(theirs) // 2]
        result.peers[name] = {"s": median_s, "min_s": min(theirs)}
        for own_name in waited:
            result.ratio(f"{own_name}/{name}", waited[own_name], theirs)
    names = {scheme: name for name, scheme in schemes_of(arguments.ranks, 1).items()}
    better = min(times.values(), key=min)
    result.ratio("chosen/better_peer", waited[names[chosen]], better)
    ring = schemes_of(arguments.ranks, 1)["ring"]
    shape = {"num_heads": arguments.heads, "head_dim": arguments.width, "element_bytes": 4}
    grouped = attention_bytes(arguments.tokens, ring, num_kv_heads=arguments.kv_heads, **shape)
    expanded = attention_bytes(arguments.tokens, ring, num_kv_heads=arguments.heads, **shape)
    share = (grouped.forward + grouped.backward) / (expanded.forward + expanded.backward)
    result.braid["ring/share_of_expanded_bytes"] = share
    return result


def main() -> None:
    """Run all ranks, or be one of them."""
    arguments = options(
        __doc__,
        tokens=8192,
        ranks=2,
        heads=4,
        kv_heads=4,
        width=64,
        rounds=5,
        rate="",
        rank=-1,
        address="",
        port=0,
        out="",
    )
    if arguments.rank >= 0:
        worker(arguments)
        return
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "times.json"
        start_ranks("benchmarks.sequence", arguments, out)
        measured = json.loads(out.read_text())
    chosen = choice(arguments, *measured["rates"])
    report(arguments, measured["times"], measured["waited"], chosen).show(as_json=arguments.json)


if __name__ == "__main__":
    main()
