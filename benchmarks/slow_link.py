"""Training over a slow link: Braid's compressed exchanges and torch's DDP hooks side by side.

    python benchmarks/slow_link.py --keep speed --minutes 3 [--rates 100mbit,1gbit] [--json]
    python benchmarks/slow_link.py --keep loss --minutes 3 --loss 300 [--seeds 3] [--json]

The first form needs root: two hosts in network namespaces, one process with one thread each, whose
link is limited to each rate in turn, train a GPT of 24.5 M parameters in every way, a few steps of
each in turns. Figures are steps per second and bytes on the wire per step, as the network device
counts them. The second form trains each way for so many steps over an unlimited link and compares
losses and bytes with the dense run of the same optimizer. The learning rate is constant, or with
`--cosine` warmed up and decayed. The text is Python's standard library.

With `--keep FOLDER` what was measured is kept there, and with `--minutes` no measurement begins
later than that: the same command again goes on, and prints what there is. A measurement is one
rate, or one way and seed.

`--width 64 --layers 1 --vocab 512 --rounds 1 --steps 2` is a run of seconds.
"""

import contextlib
import json
import statistics
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from harness import Result, options
from kept import Kept, settings_of
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.hosts.namespaces import Host, two_hosts, why_not  # noqa: E402

PEERS = ("ddp_fp32", "ddp_fp16", "ddp_powersgd", "ddp_sgd")
SPEED = (
    "ddp_fp32,ddp_fp16,ddp_powersgd,braid_dgc,braid_econtrol,braid_powersgd,braid_powersgd8,"
    "braid_int8,braid_fp4"
)
LOSS = (
    "ddp_fp32,braid_econtrol,ddp_powersgd,braid_powersgd8,braid_fp4,braid_powersgd,braid_ef,"
    "ddp_sgd,braid_dgc,braid_dgc_warm"
)
PORT = 29_400
TEXT_BYTES = 8_000_000


def prepare_tokens(folder: Path, vocab: int) -> Path:
    """Train a tokenizer on the standard library's source; the file with its tokens."""
    path = folder / f"tokens-{vocab}.npy"
    if path.exists():
        return path
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    text = "\n".join(file.read_text(encoding="utf-8", errors="ignore") for file in files)
    text = text[:TEXT_BYTES]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    lines = text.splitlines(keepends=True)
    tokenizer.train_from_iterator(lines, trainer)
    encoded = tokenizer.encode_batch(lines)
    aside = folder / "part.npy"
    np.save(aside, np.concatenate([np.array(line.ids, dtype=np.int32) for line in encoded]))
    return aside.rename(path)


@contextlib.contextmanager
def linked_hosts(rate: str) -> Iterator[tuple[Host, Host]]:
    """Two hosts whose link has this rate both ways; none where it is empty."""
    with two_hosts() as hosts:
        for host in hosts:
            if rate:
                host.limit(rate)
        yield hosts


def run(arguments: Any, variants: str, tokens: Path, rate: str, **changes: Any) -> dict[str, Any]:
    """Both ranks of one measurement; what rank 0 found."""
    shared = {
        **{name: vars(arguments)[name] for name in ("vocab", "width", "layers", "length")},
        **{name: vars(arguments)[name] for name in ("batch", "warmup", "rounds", "steps")},
        **{name: vars(arguments)[name] for name in ("dense_steps", "seed", "bucket_mb")},
        **{"decay_steps": 0, "lr": float(arguments.lr), "sgd_lr": float(arguments.sgd_lr)},
        **{"variants": variants.split(","), "tokens": str(tokens), "port": PORT},
        **changes,
    }
    with tempfile.TemporaryDirectory() as folder, linked_hosts(rate) as hosts:
        started: list[subprocess.Popen[bytes]] = []
        for rank, host in enumerate(hosts):
            out = str(Path(folder) / f"{rank}.json")
            own = {"rank": rank, "address": hosts[0].address, "device": host.device, "out": out}
            task = Path(folder) / f"task-{rank}.json"
            task.write_text(json.dumps(shared | own))
            words = [sys.executable, str(ROOT / "benchmarks/slow_link_rank.py"), str(task)]
            environment = [f"GLOO_SOCKET_IFNAME={host.device}", f"PYTHONPATH={ROOT}"]
            started.append(host.popen(["env", *environment, *words], host.folder / "log"))
        for process, host in zip(started, hosts, strict=True):
            if process.wait():
                raise SystemExit((host.folder / "log").read_text())
        found: dict[str, Any] = json.loads((Path(folder) / "0.json").read_text())
    return found


def record(result: Result, variant: str, figure: str, value: float) -> None:
    """Put a figure with Braid's or a peer's."""
    if variant in PEERS:
        result.peers.setdefault(variant, {})[figure] = value
    else:
        result.braid[f"{variant.removeprefix('braid_')}_{figure}"] = value


def measure_speed(result: Result, arguments: Any, tokens: Path, kept: Kept) -> None:
    """Step rates at every link rate."""
    variants = arguments.variants or SPEED
    for rate in arguments.rates.split(","):
        measure = partial(run, arguments, variants, tokens, rate)
        found = kept.measured(f"{rate}-{variants}", measure)
        if found is None:
            continue
        seconds = found["seconds"]
        for variant, times in seconds.items():
            record(result, variant, f"{rate}_steps_per_s", 1 / statistics.median(times))
            sent = statistics.median(found["sent_bytes"][variant])
            record(result, variant, f"{rate}_sent_bytes_per_step", sent)
        for variant in (name for name in seconds if name not in PEERS):
            for peer in (name for name in PEERS if name in seconds):
                figure = f"{rate}_{variant.removeprefix('braid_')}_over_{peer}"
                result.ratio(figure, seconds[peer], seconds[variant])


def measure_loss(result: Result, arguments: Any, tokens: Path, kept: Kept) -> None:
    """Mean loss of the last tenth of the steps, bytes per step in it and in all, against the dense
    run of the same optimizer and seed."""
    finals: dict[str, dict[int, dict[str, float]]] = {}
    last = max(1, arguments.loss // 10)
    for seed in range(arguments.seeds):
        for variant in (arguments.variants or LOSS).split(","):
            changes = {"warmup": arguments.loss, "rounds": 0, "seed": seed}
            changes["decay_steps"] = arguments.loss if arguments.cosine else 0
            measure = partial(run, arguments, variant, tokens, "", **changes)
            found = kept.measured(f"{variant}-{seed}", measure)
            if found is None:
                continue
            losses, sent = found["losses"][variant], found["warmup_bytes"][variant]
            finals.setdefault(variant, {})[seed] = {
                "final_loss": statistics.mean(losses[-last:]),
                "final_bytes_per_step": statistics.mean(sent[-last:]),
                "bytes_per_step": statistics.mean(sent),
            }
    for variant, by_seed in finals.items():
        dense = "ddp_sgd" if variant.startswith("braid_dgc") else "ddp_fp32"
        both = sorted(set(by_seed) & set(finals.get(dense, {})))
        for figure in ("final_loss", "final_bytes_per_step", "bytes_per_step"):
            record(result, variant, figure, statistics.median(f[figure] for f in by_seed.values()))
            if variant in ("ddp_fp32", "ddp_sgd") or not both:
                continue
            ours, theirs = ([finals[v][s][figure] for s in both] for v in (variant, dense))
            if figure == "final_loss":
                result.ratio(f"{variant}_loss_over_{dense}", ours, theirs)
            else:
                result.ratio(f"{dense}_{figure}_over_{variant}", theirs, ours)


def main() -> None:
    """Measure and print."""
    arguments = options(
        __doc__,
        rates="100mbit,1gbit",
        variants="",
        loss=0,
        seeds=1,
        width=512,
        layers=5,
        vocab=8192,
        length=128,
        batch=4,
        warmup=3,
        rounds=3,
        steps=5,
        dense_steps=1,
        seed=0,
        lr="1e-3",
        sgd_lr="0.3",
        cosine=False,
        bucket_mb=25,
        keep="",
        minutes="0",
    )
    reason = why_not()
    if reason is not None:
        raise SystemExit(f"This benchmark needs two hosts: {reason}.")
    result = Result(name="slow_link")
    kept = Kept(arguments.keep, float(arguments.minutes), settings_of(arguments))
    with kept.place() as folder:
        tokens = prepare_tokens(folder, arguments.vocab)
        if arguments.loss:
            measure_loss(result, arguments, tokens, kept)
        else:
            measure_speed(result, arguments, tokens, kept)
    result.missing = kept.missing
    result.show(as_json=arguments.json)


if __name__ == "__main__":
    main()
