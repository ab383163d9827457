"""Every key of a training process is read by some kind of run: none exists for show."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from comms.compression.config import ReplicaConfig
from comms.config import CommsConfig
from offload.config import OffloadConfig
from parallel.config import ParallelConfig
from tests.jobs import tiny_job, train_on_ranks
from trainer.checkpoint.config import CheckpointConfig
from trainer.config import JobConfig, OptimConfig, SchedConfig
from trainer.errors import RecipeError
from trainer.model.config import ModelConfig, RopeScaling
from trainer.model.decoder import Decoder
from trainer.model.hf_weights import write_hf_folder
from trainer.model.init import init_weights
from trainer.model.resolve import resolve_architecture
from trainer.numeric.config import NumericConfig
from trainer.reads import leaves_of

DRIVER_KEYS = {"run.project", "run.sample_prompt", "keep.replica_share"}
"""Read by the driver, which these runs do without."""


def _chat(job: JobConfig, folder: Path) -> JobConfig:
    lines = [
        {"messages": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": "!"}]}
        for n in range(60)
    ]
    path = folder / "chats.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return replace(job, data=replace(job.data, source=str(path), kind="chat"))


def _jsonl(job: JobConfig, folder: Path) -> JobConfig:
    path = folder / "texts.jsonl"
    lines = [json.dumps({"text": f"document {n} " * (n % 30 + 1)}) + "\n" for n in range(80)]
    path.write_text("".join(lines))
    return replace(job, data=replace(job.data, source=str(path)))


def _rope(job: JobConfig, kind: str) -> JobConfig:
    scaling = RopeScaling(kind=kind, factor=2.0, original_context_tokens=64)  # type: ignore[arg-type]
    model = replace(job.model, moe=None, sliding_window=16, rope_scaling=scaling)
    sched = SchedConfig(name="wsd", warmup_steps=2)
    return replace(job, model=model, sched=sched)


def _rolling(job: JobConfig) -> JobConfig:
    checkpoint = CheckpointConfig(interval_steps=20)
    return replace(job, numeric=NumericConfig(on_spike="rollback"), checkpoint=checkpoint)


def _even_experts(job: JobConfig) -> JobConfig:
    assert job.model.moe is not None
    moe = replace(job.model.moe, num_experts=4)
    return replace(job, model=replace(job.model, moe=moe), parallel=ParallelConfig(shard=2, ep=2))


def _folder_model(job: JobConfig, folder: Path) -> JobConfig:
    written = ModelConfig(hidden_size=32, num_layers=1, num_heads=2, num_kv_heads=2)
    architecture = resolve_architecture(written, 384)
    model = Decoder(architecture)
    init_weights(model, 0)
    tensors = {name: tensor.detach() for name, tensor in model.named_parameters()}
    path = folder / "hf"
    write_hf_folder(
        path,
        architecture,
        tensors,
        dtype=torch.float32,
        max_shard_bytes=10**9,
        tokenizer_folder=None,
    )
    tokenizer = str(folder / "runs" / "tiny" / "tokenizer")
    return replace(
        job,
        model=ModelConfig(path=str(path)),
        data=replace(job.data, tokenizer=tokenizer),
        run=replace(job.run, name="from-folder"),
        checkpoint=CheckpointConfig(interval_s=1e9),
    )


def _offloaded(job: JobConfig, folder: Path) -> list[tuple[JobConfig, int]]:
    """Runs that read all keys of optimizer states and activations outside the device."""
    disk = OffloadConfig(optimizer="disk", disk=(str(folder / "scratch"),), disk_depth=1)
    interleaved = OffloadConfig(optimizer="interleaved")
    return [(replace(job, offload=disk), 2), (replace(job, offload=interleaved), 1)]


def _compressed(job: JobConfig) -> list[tuple[JobConfig, int]]:
    """Runs that read all keys of compression between replicas, and of the optimizer it needs."""
    layout = ParallelConfig(replica=2)
    momentum = OptimConfig(name="sgd")
    replicas = [
        ReplicaConfig(method="econtrol", contraction="low_rank"),
        ReplicaConfig(method="quantized"),
    ]
    dgc = CommsConfig(replica=ReplicaConfig(method="dgc", warmup_steps=5))
    return [
        (replace(job, parallel=layout, optim=momentum, comms=dgc), 2),
        *((replace(job, parallel=layout, comms=CommsConfig(replica=r)), 2) for r in replicas),
    ]


def _unread(config: JobConfig, ranks: int) -> tuple[set[str], set[str]]:
    """All leaves of a job, and those that nothing reads while it is set up."""
    names = {name for name, _ in leaves_of(config)} - DRIVER_KEYS
    with pytest.raises(RecipeError) as refused:
        train_on_ranks(config, ranks, explicit={name: "here" for name in names} | {"z.z": "here"})
    lines = [line for line in str(refused.value).splitlines() if line.startswith("here: ")]
    unread = {line.removeprefix("here: ").split(" ")[0] for line in lines}
    assert "z.z" in unread
    return names, unread & names


@pytest.mark.timeout(240)
def test_every_key_is_read_by_some_run(tmp_path):
    job = tiny_job(tmp_path)
    train_on_ranks(job, 1, stop_after=1)  # leaves a tokenizer for the run from a folder
    job = replace(job, run=replace(job.run, name="keys"))
    variants = [
        (job, 1),
        (replace(job, parallel=ParallelConfig(shard=2)), 2),
        (replace(job, parallel=ParallelConfig(shard=2, shard_weights=1)), 2),
        (replace(job, parallel=ParallelConfig(pp=2, schedule="interleaved", stages_per_rank=1)), 2),
        (_even_experts(job), 2),
        (_rope(job, "yarn"), 1),
        (_rolling(_rope(job, "llama3")), 1),
        (_chat(job, tmp_path), 1),
        (_jsonl(job, tmp_path), 1),
        (_folder_model(job, tmp_path), 1),
        *_offloaded(job, tmp_path),
        (replace(job, parallel=ParallelConfig(island=2)), 2),
        *_compressed(job),
    ]
    every: set[str] = set()
    read: set[str] = set()
    for config, ranks in variants:
        names, unread = _unread(config, ranks)
        every |= names
        read |= names - unread
    assert every - read == set()
