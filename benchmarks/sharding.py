"""Hierarchical sharding on 4 ranks beside plain FSDP2: step time, bytes per axis, peak memory.

    python -m benchmarks.sharding [--width 512] [--blocks 12] [--rounds 2] [--rate 1gbit] [--json]

Step times are taken of all contenders in turns in the same processes; `--rate` puts half of the
ranks on another host behind such a link (needs root). Peak memory is taken in processes of its own
for every contender: resident memory above what the process had before there was a model, whose
activations are kept small, as a share of what `parallel.hierarchy.volume` says.
"""

import json
import statistics
import tempfile
from argparse import Namespace
from pathlib import Path

from benchmarks.harness import Result, options
from benchmarks.linked_ranks import start_ranks
from benchmarks.sharding_rank import PEER, RANKS, WIDTHS, worker


def measure(given: Namespace, what: str, rate: str) -> dict:
    """Measure `what` on all ranks, on this host or on two with a link between them."""
    variables = {}
    if what != "times":
        # Freed memory goes back at once: what is resident is what is used.
        variables = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "result.json"
        asked = Namespace(**{**vars(given), "what": what, "rate": rate})
        start_ranks("benchmarks.sharding", asked, out, variables=variables)
        return json.loads(out.read_text())


def report(given: Namespace, timed: dict, memory: dict[str, dict]) -> Result:
    """Medians, bytes per axis, peaks, and ours over FSDP2, turn by turn."""
    result = Result(name="sharding")
    theirs = timed["times"][PEER]
    result.peers[PEER] = {
        "step_s": statistics.median(theirs),
        "peak_mb": memory[PEER]["measured"] / 1e6,
    }
    for name in WIDTHS:
        own, peak = timed["times"][name], memory[name]
        result.braid |= {
            f"{name}/step_s": statistics.median(own),
            f"{name}/waited_s": statistics.median(timed["waited"][name]),
            f"{name}/peak_mb": peak["measured"] / 1e6,
            f"{name}/formula_mb": peak["formula"] / 1e6,
            f"{name}/peak_over_formula": peak["measured"] / peak["formula"],
        }
        for axis, sent in timed["sent"][name].items():
            result.braid[f"{name}/sent_mb {axis}"] = sent / 1e6
        result.ratio(f"{name}/{PEER}", own, theirs)
    return result


def main() -> None:
    """Run all ranks of all measurements, or be one rank of one."""
    given = options(
        __doc__,
        width=512,
        blocks=12,
        rounds=2,
        tokens=64,
        turns=5,
        dtype="fp32",
        quantized=0,
        rate="",
        ranks=RANKS,
        what="",
        rank=-1,
        address="",
        port=0,
        out="",
    )
    if given.rank >= 0:
        worker(given)
        return
    timed = measure(given, "times", given.rate)
    memory = {name: measure(given, name, "") for name in (*WIDTHS, PEER)}
    report(given, timed, memory).show(as_json=given.json)


if __name__ == "__main__":
    main()
