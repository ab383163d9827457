"""One run on a connected cluster: check, place, start, supervise, and take down what was made."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass

import ray
from ray.exceptions import RayError
from ray.util.placement_group import PlacementGroup

from cluster.agents import Agents
from cluster.beside import Beside, Nothing
from cluster.config import ClusterConfig
from cluster.controller import Limits
from cluster.crew import Crew
from cluster.failure import WorkersFailed
from cluster.generations import Generations
from cluster.means import Means
from cluster.placement import nodes_of_bundles, reserved
from cluster.preflight import GIB, Needs, Node, check_capacity, check_nodes, fits, living_nodes
from cluster.probe import ask_nodes, versions
from cluster.ray_connect import connected
from cluster.reading import Outcome
from cluster.recovery.budget import Allowance
from cluster.recovery.config import RecoveryConfig
from cluster.rescuer import Charge
from cluster.rl.setup import RolloutMeans, conducting, rollout_means
from cluster.run import Run
from cluster.signals import StopSignals
from cluster.startup import deadlines_by_phase
from cluster.view import RunView
from cluster.waiting import Phases, Waiting
from cluster.watchdog.watch import Watchdog
from trainer.errors import InfrastructureError
from trainer.keeping.config import KeepingConfig
from trainer.keeping.folder import run_folder_in_memory
from trainer.reads import ReadLog, require_read
from trainer.rl.config import RolloutConfig

CHECKING_S = 60.0
"""Until every node has answered; a node that takes longer is out of order."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The sections `cluster` and `recovery`, read once and entirely."""

    means: Means
    rollouts: RolloutMeans | None
    """None in a run without rewards."""

    address: str
    placing_s: float
    project: str


def settings_of(
    config: ClusterConfig,
    recovery: RecoveryConfig,
    keep: KeepingConfig,
    rollout: RolloutConfig | None,
    *,
    project: str,
) -> Settings:
    """What the sections say, in the words of this package; `rollout` is None without rewards."""
    rollouts = None if rollout is None else rollout_means(rollout, config.deadlines.starting_s)
    return Settings(
        rollouts=rollouts,
        means=Means(
            needs=Needs(
                workers=config.num_workers,
                cpus=config.cpus_per_worker,
                gpus=config.gpus_per_worker,
                memory_bytes=int(config.memory_per_worker_gib * GIB),
                spares=config.spares,
                rollouts=rollouts.workers if rollouts else 0,
                rollout_cpus=rollouts.cpus if rollouts else 0.0,
                rollout_gpus=rollouts.gpus if rollouts else 0.0,
                rollout_memory_bytes=rollouts.memory_bytes if rollouts else 0,
            ),
            threads=max(1, int(config.cpus_per_worker)),
            limits=Limits(
                phases_s=deadlines_by_phase(config.deadlines),
                stop_grace_s=config.stop_grace_s,
            ),
            starting_s=config.deadlines.starting_s,
            allowance=Allowance(
                max_restarts=recovery.max_restarts,
                window_s=recovery.restart_window_s,
                backoff_s=recovery.backoff_s,
            ),
            replace_within_s=recovery.replace_within_s,
            free_within_s=recovery.free_within_s,
            min_workers=min(recovery.min_workers, config.num_workers),
            cordon_after=recovery.cordon_after,
            cordon_window_s=recovery.cordon_window_s,
            grow=recovery.grow,
            grow_after_s=recovery.grow_after_s,
            replica_share=keep.replica_share,
            rescue_after_s=recovery.rescue_after_s,
        ),
        address=config.address,
        placing_s=config.deadlines.placing_s,
        project=project,
    )


def read(run: Run) -> tuple[Settings, dict[str, str]]:
    """The settings of the driver, and the keys that the recipe set for the ranks. Raises
    RecipeError for one of the driver's that nothing reads."""
    reads = ReadLog()
    by_rewards = run.job.rl.enabled
    settings = settings_of(
        reads.watch(run.cluster, "cluster."),
        reads.watch(run.recovery, "recovery."),
        reads.watch(run.job.keep, "keep."),
        run.job.rollout if by_rewards else None,
        project=reads.watch(run.job.run, "run.").project,
    )
    explicit = run.explicit()
    own = ("cluster.", "recovery.")
    require_read(reads, {key: explicit[key] for key in explicit if key.startswith(own)})
    # The command line reads the prompt when the run is over; the watchdog and those who sample
    # read as they go.
    elsewhere = reads.read | {"run.sample_prompt"}
    others = ("watchdog.", *(("rl.", "rollout.") if by_rewards else ()))
    return settings, {
        key: where
        for key, where in explicit.items()
        if key not in elsewhere and not key.startswith(others)
    }


def conduct(run: Run, *, phases: Phases, view: RunView, stop: StopSignals) -> Outcome:
    """The run from connecting to its last step. Nothing of it is left on the cluster afterwards.

    Raises WorkersFailed, a BraidError for what the driver itself found, or OSError where the run
    folder cannot be written.
    """
    settings, for_ranks = read(run)
    needs = settings.means.needs
    phases.begin("connecting")
    try:
        with connected(settings.address):
            stop.install()  # Ray has just put its own handler there.
            nodes = check(run, needs, phases, view)
            waiting = phases.begin("placing", deadline_s=settings.placing_s)
            with reserved(run.job.run.name, needs, waiting) as group, ExitStack() as made:
                agents, crew = people(run, settings, made, group, nodes, phases)
                beside: Beside = Nothing()
                if settings.rollouts is not None:
                    beside = made.enter_context(
                        conducting(
                            run,
                            group,
                            crew,
                            settings.rollouts,
                            node_of_driver(nodes),
                            settings.project,
                            settings.means.min_workers,
                        )
                    )
                return Generations(
                    crew=crew,
                    agents=agents,
                    watchdog=Watchdog(run.watchdog),
                    run=run,
                    means=settings.means,
                    project=settings.project,
                    explicit=for_ranks,
                    phases=phases,
                    view=view,
                    stop=stop,
                    beside=beside,
                ).to_the_end()
    except RayError as error:
        raise InfrastructureError(f"the Ray cluster failed under the run: {error}") from error


def people(
    run: Run,
    settings: Settings,
    made: ExitStack,
    group: PlacementGroup,
    nodes: Sequence[Node],
    phases: Phases,
) -> tuple[Agents, Crew]:
    """Agents and the crew, ready to work and ended by `made`. Raises as `start` does."""
    needs = settings.means.needs
    by_id = {node.node_id: node for node in nodes}
    nodes_of = {b: by_id[n] for b, n in nodes_of_bundles(group).items()}
    waiting = phases.begin("starting", deadline_s=settings.means.starting_s)
    charge = charge_of(run, settings.means.rescue_after_s)
    agents = made.enter_context(closing(Agents(node_of_driver(nodes).node_id, charge)))
    crew = made.enter_context(closing(Crew(group, needs, run.folder, run.work)))
    agents.open(sorted({node.node_id for node in nodes_of.values()}))
    start(crew, nodes_of, needs.first_rollout_bundle, waiting)
    return agents, crew


def charge_of(run: Run, wait_s: float) -> Charge:
    """What is left of the run should this process die."""
    root = run.folder.root
    memory = run_folder_in_memory(run.job.keep.dir, name=root.name, run_root=root)
    return Charge(run=str(root), memory=str(memory), wait_s=wait_s)


def node_of_driver(nodes: Sequence[Node]) -> Node:
    """Where this process runs."""
    own = ray.get_runtime_context().get_node_id()
    return next(node for node in nodes if node.node_id == own)


def check(run: Run, needs: Needs, phases: Phases, view: RunView) -> list[Node]:
    """The living nodes. Raises ResourceError where they cannot hold the run or differ."""
    waiting = phases.begin("checking", deadline_s=CHECKING_S)
    nodes = living_nodes(ray.nodes())
    view.note(check_capacity(nodes, needs))
    here = node_of_driver(nodes)
    others = [node for node in nodes if node is not here and fits(node, needs)]
    check_nodes(ask_nodes(others, run.folder.root, waiting), versions(), str(run.folder.root))
    return nodes


def start(crew: Crew, nodes_of: Mapping[int, Node], bundles: int, waiting: Waiting) -> None:
    """Have the processes of the first `bundles` bundles import the work. Raises WorkersFailed where
    one cannot, InfrastructureError after the deadline."""
    for bundle in range(bundles):
        crew.start(nodes_of[bundle], bundle)
    while crew.starting:
        failures = crew.advance(timeout_s=0.2)
        if failures:
            raise WorkersFailed(failures)
        late = ", ".join(f"process {m.number} on {m.host}" for m in crew.starting)
        if crew.starting and waiting.overrun(f"waiting for {late}"):
            raise InfrastructureError(
                f"starting: {late} not ready after {waiting.elapsed_s:.0f} s "
                "(cluster.deadlines.starting_s); raise the deadline, or see the worker's log in "
                "the run folder"
            )
