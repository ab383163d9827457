"""Model, gradients and optimizer of one rank, from configuration to filled tensors."""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from comms.compression.config import compression_of, kept_bytes
from comms.config import RankEnvironment
from comms.groups import device_of, own_group
from comms.ledger import Ledger
from offload.activations.policy import Kind
from offload.weights import local
from parallel.gradients import Gradients
from parallel.layout import Layout
from parallel.mesh import build_mesh
from parallel.pool import SequencePool, open_pool
from parallel.replicas import Replicas, open_replicas
from trainer.activation_setup import set_up_activations
from trainer.activation_tiers import open_activations
from trainer.activations import Activations
from trainer.config import JobConfig, TrainConfig
from trainer.host_map import HostMap, sharding_lines
from trainer.memory import device_capacity_bytes
from trainer.model.config import Architecture
from trainer.model.hf_weights import load_hf_weights
from trainer.model.init import init_weights
from trainer.model.packing import Sharing
from trainer.model.resolve import resolve_architecture
from trainer.model.size import parameter_count
from trainer.offloading import build_optimizer
from trainer.optim import Optimizer
from trainer.planner.plan import SequenceGroup
from trainer.rounds import Rounds
from trainer.spread import attention_schemes, choose_layout
from trainer.stages import spread_decoder, spread_stages
from trainer.weights import Weights

STATE_BYTES_PER_PARAMETER = 16
"""fp32 master weight, gradient and two moments. Compression keeps more."""


@dataclass(frozen=True, kw_only=True)
class Assembly:
    """What is trained, and how it is spread."""

    architecture: Architecture
    layout: Layout
    ranks_per_host: int
    """The same on all ranks."""

    group: dist.ProcessGroup | None
    """The ranks of this island; None where they are all ranks."""

    dtype: torch.dtype
    """Of forward and backward."""

    compiled: bool
    weights: Weights
    rounds: Rounds
    pool: SequencePool
    gradients: Gradients
    replicas: Replicas | None
    """The compressed exchange between replicas; None where gradients are summed whole."""

    optimizer: Optimizer
    activations: Activations
    activation_kinds: tuple[Kind, ...]
    """What a plan may choose from for them."""

    origin: str
    """Where the weights come from, in a sentence."""

    def close(self) -> None:
        """Let go of what is outside the device and of other threads. Called once, after the last
        update."""
        self.optimizer.close()
        self.activations.close()
        if self.replicas is not None:
            self.replicas.exchange.close()

    def sharing(self, group: SequenceGroup) -> Sharing:
        """How the ranks of `group` compute one stream together."""
        return Sharing(
            attend=self.pool.attention(group.attention),
            sum_over_group=self.pool.sum_over(group.size),
        )


def assemble(
    config: JobConfig,
    environment: RankEnvironment,
    *,
    tokenizer_vocab: int,
    ledger: Ledger,
    hosts: HostMap | None = None,
) -> Assembly:
    """Build on meta, spread, allocate, fill. All ranks call it, after joining.

    Weights come from `model.path` or from (seed, name, position) alone, so that any layout starts
    from the same ones.
    """
    architecture = resolve_architecture(config.model, tokenizer_vocab)
    on_host = agreed_ranks_per_host(environment)
    layout = agree_on_layout(config, architecture, environment, ranks_per_host=on_host)
    dtype = compute_dtype(config.train, environment)
    meshes = build_mesh(layout, environment.device_type, sharding_lines(layout, hosts))
    replicas = _open_replicas(config, layout, ranks_per_host=on_host, ledger=ledger)
    spread = spread_decoder if layout.pp == 1 else spread_stages
    spreading = spread(config, architecture, meshes, dtype, ledger, on_host, replicas)
    spreading.allocate(device_of(environment))
    origin = _fill(spreading.weights, config)
    gradients, rounds = spreading.start()
    setup = set_up_activations(
        config,
        architecture,
        layout,
        environment,
        dtype=dtype,
        parameters=sum(local(p).numel() for p in spreading.weights.parameters()),
    )
    optimizer = build_optimizer(spreading.weights, config, layout, environment, beside=setup.need)
    return Assembly(
        architecture=architecture,
        layout=layout,
        ranks_per_host=on_host,
        group=own_group(layout.islands()) if layout.island > 1 else None,
        dtype=dtype,
        compiled=config.train.compile,
        weights=spreading.weights,
        rounds=rounds,
        pool=open_pool(
            layout,
            rank=environment.rank,
            schemes=attention_schemes(config, architecture, layout, on_host),
            ledger=ledger,
        ),
        gradients=gradients,
        replicas=replicas,
        optimizer=optimizer,
        activations=open_activations(setup, spreading.weights.model, environment),
        activation_kinds=setup.kinds,
        origin=origin,
    )


def _open_replicas(
    config: JobConfig, layout: Layout, *, ranks_per_host: int, ledger: Ledger
) -> Replicas | None:
    """The compressed exchange that the recipe asks for. All ranks call it."""
    if config.comms.replica.method == "none":
        return None
    momentum, nesterov, max_grad_norm = 0.0, False, math.inf
    if config.comms.replica.method == "dgc":
        momentum, nesterov = config.optim.momentum, config.optim.nesterov
        if config.comms.replica.clip_norm is None:
            max_grad_norm = config.optim.max_grad_norm
    compression = compression_of(
        config.comms.replica,
        momentum=momentum,
        nesterov=nesterov,
        max_grad_norm=max_grad_norm,
        seed=config.run.seed,
    )
    return open_replicas(compression, layout, ranks_per_host=ranks_per_host, ledger=ledger)


def _fill(weights: Weights, config: JobConfig) -> str:
    init_weights(weights, config.run.seed)
    origin = f"initial weights of seed {config.run.seed}"
    if config.model.path is not None and config.model.load_weights:
        origin = load_hf_weights(weights, Path(config.model.path))
    weights.publish()
    return origin


def agreed_ranks_per_host(environment: RankEnvironment) -> int:
    """Ranks that share each host; 1 where hosts differ, since nothing can then be aligned to them.
    All ranks call it and get the same answer."""
    most, least = (torch.tensor(environment.local_world_size) for _ in range(2))
    dist.all_reduce(most, op=dist.ReduceOp.MAX)
    dist.all_reduce(least, op=dist.ReduceOp.MIN)
    return int(most) if most == least else 1


def agree_on_layout(
    config: JobConfig,
    architecture: Architecture,
    environment: RankEnvironment,
    *,
    ranks_per_host: int,
) -> Layout:
    """Resolve the axis sizes. All ranks call it. Raises RecipeError where they do not fit."""
    capacity_bytes = device_capacity_bytes(
        device_of(environment), ranks_on_host=environment.local_world_size
    )
    # Hosts may differ, and every rank must come to the same answer.
    smallest = torch.tensor(capacity_bytes, dtype=torch.int64)
    dist.all_reduce(smallest, op=dist.ReduceOp.MIN)
    return choose_layout(
        config,
        architecture,
        world_size=environment.world_size,
        state_bytes=parameter_count(architecture)
        * (STATE_BYTES_PER_PARAMETER + kept_bytes(config.comms.replica)),
        device_bytes=int(smallest),
        ranks_per_host=ranks_per_host,
    )


def compute_dtype(train: TrainConfig, environment: RankEnvironment) -> torch.dtype:
    """Precision of forward and backward. `auto` is bf16 on CUDA and fp32 on CPU."""
    if train.precision == "auto":
        return torch.bfloat16 if environment.device_type == "cuda" else torch.float32
    return {"fp32": torch.float32, "bf16": torch.bfloat16}[train.precision]
