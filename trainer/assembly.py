"""Model, gradients and optimizer of one rank, from configuration to filled tensors."""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from comms.config import RankEnvironment
from comms.groups import device_of
from comms.ledger import Ledger
from parallel.apply import gradients_of, parallelize
from parallel.gradients import Gradients
from parallel.layout import Layout
from parallel.mesh import build_mesh
from parallel.shard import fsdp_modules
from trainer.config import JobConfig, TrainConfig
from trainer.measure import measure_hardware
from trainer.memory import device_capacity_bytes
from trainer.model.config import Architecture
from trainer.model.decoder import Decoder
from trainer.model.hf_weights import load_hf_weights
from trainer.model.init import init_weights
from trainer.model.resolve import resolve_architecture
from trainer.model.size import flops_per_token, parameter_count
from trainer.optim import build_adamw
from trainer.planner.batch import BatchArithmetic
from trainer.planner.costs import ModelCost
from trainer.planner.fixed import FixedPlanner
from trainer.spread import choose_layout

STATE_BYTES_PER_PARAMETER = 16
"""fp32 master weight, gradient and two moments."""


@dataclass(frozen=True, kw_only=True)
class Assembly:
    """What is trained, and how it is spread."""

    architecture: Architecture
    layout: Layout
    dtype: torch.dtype
    """Of forward and backward."""

    compiled: bool
    model: Decoder
    gradients: Gradients
    optimizer: torch.optim.AdamW
    weights: str
    """Where the weights come from, in a sentence."""


def assemble(
    config: JobConfig, environment: RankEnvironment, *, tokenizer_vocab: int, ledger: Ledger
) -> Assembly:
    """Build on meta, spread, allocate, fill. All ranks call it, after joining.

    Weights come from `model.path` or from (seed, name, position) alone, so that any layout starts
    from the same ones.
    """
    architecture = resolve_architecture(config.model, tokenizer_vocab)
    layout = agree_on_layout(config, architecture, environment)
    dtype = compute_dtype(config.train, environment)
    meshes = build_mesh(layout, environment.device_type)
    with torch.device("meta"):
        model = Decoder(architecture)
    parallelize(
        model,
        blocks=list(model.layers),
        experts=model.experts,
        meshes=meshes,
        config=config.parallel,
        param_dtype=dtype,
        compile_blocks=config.train.compile,
        ledger=ledger,
    )
    model.to_empty(device=device_of(environment))
    init_weights(model, config.run.seed)
    weights = f"initial weights of seed {config.run.seed}"
    if config.model.path is not None and config.model.load_weights:
        weights = load_hf_weights(model, Path(config.model.path))
    return Assembly(
        architecture=architecture,
        layout=layout,
        dtype=dtype,
        compiled=config.train.compile,
        model=model,
        gradients=gradients_of(model, meshes=meshes, config=config.parallel, ledger=ledger),
        optimizer=build_adamw(model, config.optim),
        weights=weights,
    )


def agree_on_layout(
    config: JobConfig, architecture: Architecture, environment: RankEnvironment
) -> Layout:
    """Resolve the axis sizes. All ranks call it. Raises RecipeError where they do not fit."""
    capacity_bytes = device_capacity_bytes(
        device_of(environment), ranks_on_host=environment.local_world_size
    )
    # Hosts may differ, and every rank must come to the same answer.
    smallest = torch.tensor([capacity_bytes, environment.local_world_size], dtype=torch.int64)
    dist.all_reduce(smallest, op=dist.ReduceOp.MIN)
    return choose_layout(
        config,
        architecture,
        world_size=environment.world_size,
        state_bytes=STATE_BYTES_PER_PARAMETER * parameter_count(architecture),
        device_bytes=int(smallest[0]),
        ranks_per_host=int(smallest[1]),
    )


def compute_dtype(train: TrainConfig, environment: RankEnvironment) -> torch.dtype:
    """Precision of forward and backward. `auto` is bf16 on CUDA and fp32 on CPU."""
    if train.precision == "auto":
        return torch.bfloat16 if environment.device_type == "cuda" else torch.float32
    return {"fp32": torch.float32, "bf16": torch.bfloat16}[train.precision]


def build_planner(
    config: JobConfig,
    environment: RankEnvironment,
    assembly: Assembly,
    arithmetic: BatchArithmetic,
) -> FixedPlanner:
    """The planner with this machine's rates. All ranks call it: links are measured together."""
    sharded = bool(fsdp_modules(assembly.model))
    cost = ModelCost(
        parameters=parameter_count(assembly.architecture),
        flops_per_token=flops_per_token(
            assembly.architecture,
            assembly.architecture.vocab_size,
            context_tokens=config.data.seq_len,
        ),
        sharded=sharded,
        param_bytes=assembly.dtype.itemsize,
        reshard_after_forward=sharded and config.parallel.reshard_after_forward,
    )
    return FixedPlanner(
        layout=assembly.layout,
        arithmetic=arithmetic,
        activation="recompute" if config.train.recompute else "keep",
        model=cost,
        hardware=measure_hardware(device_of(environment)),
    )
