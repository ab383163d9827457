"""A training process as users of torchrun, Ray Train and torchft write it; see recovery_peers.py.

    python benchmarks/recovery_rank.py KIND FOLDER RECIPE

It trains the recipe's model on ready-made tokens without end, and writes what it does to
FOLDER/ranks.jsonl: `started`, `step` and `error`, with the time and the process. Under torchrun and
Ray Train rank 0 saves after every step, and all load that; torchft's ranks load from each other.
"""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from recipes.load import load_recipe
from trainer.config import JobConfig
from trainer.data.batch import Batch
from trainer.model.decoder import Decoder
from trainer.model.init import init_weights
from trainer.model.resolve import resolve_architecture
from trainer.run_folder import append_line

RANKS = 2


class Diary:
    """What this process did and when."""

    def __init__(self, folder: Path, rank: int) -> None:
        self._path = folder / "ranks.jsonl"
        self._rank = rank

    def write(self, kind: str, step: int) -> None:
        """One line."""
        record = {"time": time.time(), "kind": kind, "step": step}
        append_line(self._path, record | {"rank": self._rank, "process": os.getpid()})


def ready_made(config: JobConfig, vocab_size: int, rank: int) -> Batch:
    """This rank's half of a step, the same in every step."""
    size = config.train.global_batch_tokens // RANKS
    count = size // config.data.seq_len
    ends = tuple(config.data.seq_len * (i + 1) for i in range(count))
    chance = torch.Generator().manual_seed(rank)
    tokens_T = torch.randint(vocab_size, (size,), generator=chance)
    return Batch(
        tokens_T=tokens_T,
        labels_T=tokens_T.roll(-1),
        positions_T=torch.arange(config.data.seq_len).repeat(count),
        document_ends=ends,
        sequence_ends=ends,
        sequence_tokens=(config.data.seq_len,) * count,
        sequence_targets=(config.data.seq_len,) * count,
    )


def model_and_batch(recipe: str, rank: int) -> tuple[Decoder, Batch]:
    """The recipe's model, and what this rank trains it on."""
    torch.set_num_threads(1)
    config = load_recipe(recipe, []).recipe.job
    architecture = resolve_architecture(config.model, config.data.vocab_size)
    model = Decoder(architecture)
    init_weights(model, 0)
    return model, ready_made(config, config.data.vocab_size, rank)


def replicated(folder: Path, recipe: str, rank: int) -> None:
    """DDP in a process group that exists, with a checkpoint after every step."""
    diary = Diary(folder, rank)
    diary.write("started", 0)
    model, batch = model_and_batch(recipe, rank)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    saved, step = folder / "saved.pt", 0
    if saved.exists():
        state = torch.load(saved, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]
    spread = DistributedDataParallel(model)
    while True:
        step += 1
        try:
            _backward(spread, batch)
            optimizer.step()
            optimizer.zero_grad()
            dist.barrier()
        except RuntimeError:
            diary.write("error", step)
            raise
        if rank == 0:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save(state | {"step": step}, folder / "saving.pt")
            os.replace(folder / "saving.pt", saved)
        diary.write("step", step)


def _backward(model: Callable[[Batch], Any], batch: Batch) -> None:
    parts = model(batch)
    ((parts.loss_sum + parts.aux_sum) / batch.num_targets).backward()


def under_torchrun(folder: Path, recipe: str) -> None:
    """One of the processes that torchrun started."""
    dist.init_process_group("gloo")
    replicated(folder, recipe, dist.get_rank())


def under_ray_train(folder: Path, recipe: str) -> None:
    """The driver of Ray Train."""
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    ray.init(address="local", num_cpus=RANKS + 1, include_dashboard=False)
    TorchTrainer(
        lambda: replicated(folder, recipe, dist.get_rank()),
        torch_config=TorchConfig(backend="gloo"),
        scaling_config=ScalingConfig(num_workers=RANKS),
        run_config=RunConfig(
            name="peer",
            storage_path=str(folder / "ray-train"),
            failure_config=FailureConfig(max_failures=100),
        ),
    ).fit()


def under_torchft(folder: Path, recipe: str) -> None:
    """A replica group of one process that torchrun started."""
    from torchft import Manager, Optimizer, ProcessGroupGloo

    rank = int(os.environ["REPLICA_GROUP_ID"])
    diary = Diary(folder, rank)
    diary.write("started", 0)
    model, batch = model_and_batch(recipe, rank)
    inner = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)

    def load(state: dict[str, Any]) -> None:
        model.load_state_dict(state["model"])
        inner.load_state_dict(state["optimizer"])

    manager = Manager(
        pg=ProcessGroupGloo(),
        min_replica_size=1,
        load_state_dict=load,
        state_dict=lambda: {"model": model.state_dict(), "optimizer": inner.state_dict()},
        replica_id=f"group_{rank}",
    )
    optimizer = Optimizer(manager, inner)
    while True:
        before = manager.current_step()
        optimizer.zero_grad()
        _backward(model, batch)
        # One by one: the hook of torchft 0.2's own DDP fails an assertion when a peer is gone.
        for work in [manager.allreduce(p.grad) for p in model.parameters() if p.grad is not None]:
            work.wait()
        optimizer.step()
        # A step that was not committed is no step.
        committed = manager.current_step() > before
        diary.write("step" if committed else "error", manager.current_step())


UNDER = {"torchrun": under_torchrun, "ray-train": under_ray_train, "torchft": under_torchft}

if __name__ == "__main__":
    UNDER[sys.argv[1]](Path(sys.argv[2]), sys.argv[3])
