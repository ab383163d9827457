"""Spread a decoder, or the stages of it that a rank has, and make ready what trains on it."""

from typing import Protocol

import torch
from torch.distributed.device_mesh import DeviceMesh

from comms.groups import own_group
from comms.ledger import Ledger
from parallel.apply import ModelParts, Spread, parallelize
from parallel.experts.hosts import host_groups
from parallel.experts.transport import HostGroups
from parallel.gradients import Gradients
from parallel.mesh import Meshes
from parallel.pipeline.run import Pipeline
from parallel.pipeline.schedule import PipelineShape
from parallel.pipeline.stages import StagedGradients
from parallel.replicas import Replicas
from trainer.config import JobConfig
from trainer.data.batch import Batch
from trainer.model.config import Architecture
from trainer.model.decoder import Decoder
from trainer.model.expert_parallel import split_experts
from trainer.model.layers import DecoderLayers
from trainer.model.stage import DecoderStage, DecoderStages
from trainer.model.stage_costs import stage_layers
from trainer.model.tensor import split_decoder
from trainer.rounds import PipelinedRounds, PlainRounds, Rounds
from trainer.spread import pipeline_shape
from trainer.weights import Weights


class Spreading(Protocol):
    """A decoder that is spread but has no storage yet."""

    @property
    def weights(self) -> Weights:
        """To fill, once there is storage."""

    def allocate(self, device: torch.device) -> None:
        """Give it storage on this rank's device."""

    def start(self) -> tuple[Gradients, Rounds]:
        """What sums gradients and what runs rounds. Called once, with storage."""


def spread_decoder(
    config: JobConfig,
    architecture: Architecture,
    meshes: Meshes,
    dtype: torch.dtype,
    ledger: Ledger,
    ranks_per_host: int,
    replicas: Replicas | None = None,
) -> Spreading:
    """A whole decoder on meta, spread. All ranks call it."""
    with torch.device("meta"):
        model = Decoder(architecture)
    hosts = _expert_hosts(config, meshes, ranks_per_host)
    spread = _parallelize(model, config, meshes, dtype, ledger, hosts, replicas)
    return _Whole(model, spread, ledger)


def _expert_hosts(config: JobConfig, meshes: Meshes, ranks_per_host: int) -> HostGroups | None:
    """Groups inside and between hosts, where expert groups span hosts and two stages are wanted."""
    layout = meshes.layout
    if layout.ep == 1 or not config.parallel.two_stage_experts:
        return None
    lines = sorted({layout.line("ep", rank) for rank in range(layout.world_size)})
    # Neighbours on `tp` see the same tokens: of each expert group a host has so many fewer.
    inside = max(1, ranks_per_host // layout.tp)
    return None if layout.ep % inside else host_groups(lines, ranks_per_host=inside)


def spread_stages(
    config: JobConfig,
    architecture: Architecture,
    meshes: Meshes,
    dtype: torch.dtype,
    ledger: Ledger,
    ranks_per_host: int,
    replicas: Replicas | None = None,
) -> Spreading:
    """This rank's stages of a decoder on meta, each spread. All ranks call it."""
    shape = pipeline_shape(config.parallel, meshes.layout)
    layers = stage_layers(architecture, shape.stages, context_tokens=config.data.seq_len)
    with torch.device("meta"):
        stages = [
            DecoderStage(architecture, layers[number])
            for number in shape.stages_of(meshes.group("pp").rank())
        ]
    hosts = _expert_hosts(config, meshes, ranks_per_host)
    spreads = [
        _parallelize(stage, config, meshes, dtype, ledger, hosts, replicas) for stage in stages
    ]
    return _Staged(stages, spreads, shape, meshes, dtype, ledger, compiled=config.train.compile)


def _parallelize(
    model: DecoderLayers,
    config: JobConfig,
    meshes: Meshes,
    dtype: torch.dtype,
    ledger: Ledger,
    hosts: HostGroups | None,
    replicas: Replicas | None,
) -> Spread:
    def split_tensor(mesh: DeviceMesh, ledger: Ledger) -> object:
        return split_decoder(model, mesh, ledger)

    def split_over_experts(meshes: Meshes, ledger: Ledger) -> None:
        split_experts(model, meshes, ledger, hosts)

    return parallelize(
        model,
        parts=ModelParts(
            blocks=list(model.layers),
            experts=model.experts,
            split_tensor=split_tensor,
            split_experts=split_over_experts,
        ),
        meshes=meshes,
        config=config.parallel,
        param_dtype=dtype,
        compile_blocks=config.train.compile,
        ledger=ledger,
        replicas=replicas,
    )


class _Whole:
    def __init__(self, model: Decoder, spread: Spread, ledger: Ledger) -> None:
        self._model = model
        self._spread = spread
        self._ledger = ledger
        self.weights = Weights(model, [spread])

    def allocate(self, device: torch.device) -> None:
        self._model.to_empty(device=device)

    def start(self) -> tuple[Gradients, Rounds]:
        gradients = self._spread.gradients()
        return gradients, PlainRounds(self._model, gradients, self._ledger.begin_round)


class _Staged:
    def __init__(
        self,
        stages: list[DecoderStage],
        spreads: list[Spread],
        shape: PipelineShape,
        meshes: Meshes,
        dtype: torch.dtype,
        ledger: Ledger,
        *,
        compiled: bool,
    ) -> None:
        self._container = DecoderStages(stages)
        self._spreads = spreads
        self._shape = shape
        self._meshes = meshes
        self._dtype = dtype
        self._ledger = ledger
        self._compiled = compiled
        self._device = torch.device("meta")
        self.weights = Weights(self._container, spreads)

    def allocate(self, device: torch.device) -> None:
        self._device = device
        self._container.to_empty(device=device)

    def start(self) -> tuple[Gradients, Rounds]:
        gradients = StagedGradients([spread.gradients() for spread in self._spreads])
        layout = self._meshes.layout
        lines = sorted({layout.line("pp", rank) for rank in range(layout.world_size)})
        width = self._container.architecture.hidden_size
        pipeline: Pipeline[Batch] = Pipeline(
            self._container.stages,
            shape=self._shape,
            group=self._meshes.group("pp"),
            reverse_group=own_group(lines) if self._device.type == "cuda" else None,
            hidden_shape=lambda batch: (len(batch.tokens_T), width),
            dtype=self._dtype,
            device=self._device,
            ledger=self._ledger,
            start_backward=gradients.start_backward,
        )
        return gradients, PipelinedRounds(self._container, pipeline, compiled=self._compiled)
