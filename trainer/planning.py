"""Which planner a recipe gets, and what it is told of model and machine."""

from math import prod

from comms.config import RankEnvironment
from comms.groups import device_of
from parallel.replicas import Replicas
from trainer.assembly import Assembly
from trainer.config import JobConfig
from trainer.data.corpus import packing_of
from trainer.islands.exchange import Islands
from trainer.links import HostLinks
from trainer.measure import measure_hardware
from trainer.model.config import Architecture
from trainer.model.size import parameter_count, parameter_shapes, step_flops
from trainer.planner.activations import ActivationPlanner
from trainer.planner.batch import BatchArithmetic
from trainer.planner.compressed import CompressedPlanner
from trainer.planner.costs import AttentionShape, ModelCost, replica_bytes, sent_bytes
from trainer.planner.fixed import FixedPlanner
from trainer.planner.groups import GroupPlanner
from trainer.planner.links import LinkedPlanner
from trainer.planner.outer import IslandPlanner, OuterCosts
from trainer.planner.placed import PlacedPlanner
from trainer.planner.plan import Activation, StepPlan
from trainer.planner.protocol import Planner
from trainer.planner.steady import SteadyPlanner
from trainer.spread import group_sizes, pool_ranks_per_host


def build_planner(
    config: JobConfig,
    environment: RankEnvironment,
    assembly: Assembly,
    arithmetic: BatchArithmetic,
    islands: Islands | None = None,
    links: HostLinks | None = None,
) -> Planner:
    """The planner of this rank's island, with its machines' rates. All ranks call it: links are
    measured together.

    Sequences of one length, each on one rank, are dealt out, and by their lengths so are those of
    runs by rewards; all others are assigned by cost.
    """
    planner = _assigning_planner(config, environment, assembly, arithmetic)
    room = assembly.activations.room
    if room is not None:
        share = config.offload.activation_share
        planner = ActivationPlanner(
            planner,
            kinds=assembly.activation_kinds,
            room=room,
            share=None if share == "auto" else share,
        )
    if assembly.replicas is not None:
        planner = _compressed(planner, model_cost(config, assembly), assembly.replicas)
    optimizer = assembly.optimizer
    if optimizer.placement != "device":
        planner = PlacedPlanner(planner, optimizer=optimizer.placement, share=optimizer.share)
    if links is not None and links.watch is not None:
        planner = LinkedPlanner(planner, links.watch)
    if islands is None:
        return planner
    costs = OuterCosts(
        schedule=islands.schedule,
        sent_bytes=islands.sent_bytes(),
        bytes_per_s=islands.bytes_per_s,
        first_step=islands.first_step,
    )
    return IslandPlanner(planner, costs)


def _compressed(planner: Planner, cost: ModelCost, replicas: Replicas) -> Planner:
    """`planner`, with what replicas send in every step."""

    def other_bytes(plan: StepPlan) -> int:
        sent = sent_bytes(rounds=len(plan.rounds), layout=plan.layout, model=cost)
        return sent - replica_bytes(layout=plan.layout, model=cost)

    return CompressedPlanner(
        planner, replicas.config, replica_bytes=replicas.step_bytes, other_bytes=other_bytes
    )


def _assigning_planner(
    config: JobConfig,
    environment: RankEnvironment,
    assembly: Assembly,
    arithmetic: BatchArithmetic,
) -> Planner:
    cost = model_cost(config, assembly)
    hardware = measure_hardware(
        device_of(environment), ranks_per_host=assembly.ranks_per_host, group=assembly.group
    )
    # Where there is a choice, it is made on top of a plan that keeps everything.
    activation: Activation = "keep"
    if assembly.activation_kinds == ("recompute",):
        activation = "recompute"
    one_length = packing_of(config.data) != "single" and not config.rl.enabled
    if config.parallel.sp == 1 and one_length:
        return FixedPlanner(
            layout=assembly.layout,
            arithmetic=arithmetic,
            activation=activation,
            model=cost,
            hardware=hardware,
        )
    # A sequence alone on its rank gains little from rates, and without them steps can be repeated.
    kind = SteadyPlanner if config.rl.enabled and config.parallel.sp == 1 else GroupPlanner
    return kind(
        layout=assembly.layout,
        arithmetic=arithmetic,
        activation=activation,
        model=cost,
        hardware=hardware,
        degrees=group_sizes(
            config, assembly.architecture, assembly.layout, assembly.ranks_per_host
        ),
        ranks_per_host=pool_ranks_per_host(assembly.layout, assembly.ranks_per_host),
    )


def model_cost(config: JobConfig, assembly: Assembly) -> ModelCost:
    """What a step of this model asks of the hardware."""
    a, layout = assembly.architecture, assembly.layout
    sharded = bool(assembly.weights.fsdp_modules())
    tokens = config.data.seq_len
    linear_flops, quadratic_flops = step_flops(a, tokens)
    return ModelCost(
        parameters=parameter_count(a),
        expert_parameters=_expert_parameters(a),
        flops_per_token=linear_flops + quadratic_flops * tokens,
        linear_flops_per_token=linear_flops,
        quadratic_flops=quadratic_flops,
        attention=AttentionShape(
            num_heads=a.num_heads // layout.tp,
            num_kv_heads=a.num_kv_heads // layout.tp,
            head_dim=a.resolved_head_dim,
            element_bytes=assembly.dtype.itemsize,
            num_layers=a.num_layers // layout.pp,
            windowed=a.windowed,
        ),
        sharded=sharded,
        param_bytes=assembly.dtype.itemsize,
        reshard_after_forward=sharded and config.parallel.reshard_after_forward,
    )


def _expert_parameters(architecture: Architecture) -> int:
    shapes = parameter_shapes(architecture).items()
    return sum(prod(shape) for name, shape in shapes if ".mlp.experts." in name)
