"""One run on a connected cluster: check, place, start, supervise, and take down what was made."""

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass

import ray
from ray.exceptions import RayError

from cluster.config import ClusterConfig
from cluster.controller import Controller, Limits
from cluster.placement import nodes_of_bundles, rank_places, reserved
from cluster.preflight import GIB, Needs, Node, check_capacity, check_nodes, fits, living_nodes
from cluster.probe import ask_nodes, versions
from cluster.rank import RankSpec
from cluster.ray_connect import connected
from cluster.reading import Outcome
from cluster.run import Run
from cluster.run_info import write_run_info
from cluster.signals import StopSignals
from cluster.startup import deadlines_by_phase
from cluster.view import RunView
from cluster.waiting import Phases, Waiting
from cluster.worker_group import WorkerGroup
from comms.config import RankEnvironment
from trainer.errors import InfrastructureError
from trainer.reads import ReadLog, require_read

CHECKING_S = 60.0
"""Until every node has answered; a node that takes longer is out of order."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The `cluster` section, read once and entirely."""

    needs: Needs
    limits: Limits
    address: str
    placing_s: float
    starting_s: float
    threads: int


def settings_of(config: ClusterConfig) -> Settings:
    """What the section says, in the words of this package."""
    return Settings(
        needs=Needs(
            workers=config.num_workers,
            cpus=config.cpus_per_worker,
            gpus=config.gpus_per_worker,
            memory_bytes=int(config.memory_per_worker_gib * GIB),
        ),
        limits=Limits(
            phases_s=deadlines_by_phase(config.deadlines),
            stop_grace_s=config.stop_grace_s,
            memory_alarm_steps=config.memory_alarm_steps,
        ),
        address=config.address,
        placing_s=config.deadlines.placing_s,
        starting_s=config.deadlines.starting_s,
        threads=max(1, int(config.cpus_per_worker)),
    )


def conduct(run: Run, *, phases: Phases, view: RunView, stop: StopSignals) -> Outcome:
    """The run from connecting to its last step. Nothing of it is left on the cluster afterwards.

    Raises WorkersFailed, a BraidError for what the driver itself found, or OSError where the run
    folder cannot be written.
    """
    reads = ReadLog()
    settings = settings_of(reads.watch(run.cluster, "cluster."))
    project = reads.watch(run.job.run, "run.").project
    explicit = run.explicit()
    require_read(reads, {key: explicit[key] for key in explicit if key.startswith("cluster.")})
    # The command line reads the prompt when the run is over.
    elsewhere = reads.read | {"run.sample_prompt"}
    for_ranks = {key: where for key, where in explicit.items() if key not in elsewhere}
    phases.begin("connecting")
    try:
        with connected(settings.address):
            stop.install()  # Ray has just put its own handler there.
            nodes = check(run, settings.needs, phases, view)
            waiting = phases.begin("placing", deadline_s=settings.placing_s)
            with reserved(run.job.run.name, settings.needs, waiting) as group:
                places = rank_places(nodes_of_bundles(group), nodes)
                write_run_info(run, places)
                waiting = phases.begin("starting", deadline_s=settings.starting_s)
                with closing(WorkerGroup(places, group, settings.needs, run.folder)) as workers:
                    start(workers, run, settings, project, for_ranks, waiting)
                    return supervise(workers, run, settings, phases, view, stop)
    except RayError as error:
        raise InfrastructureError(f"the Ray cluster failed under the run: {error}") from error


def check(run: Run, needs: Needs, phases: Phases, view: RunView) -> list[Node]:
    """The living nodes. Raises ResourceError where they cannot hold the run or differ."""
    waiting = phases.begin("checking", deadline_s=CHECKING_S)
    nodes = living_nodes(ray.nodes())
    view.note(check_capacity(nodes, needs))
    here = ray.get_runtime_context().get_node_id()
    others = [node for node in nodes if node.node_id != here and fits(node, needs)]
    check_nodes(ask_nodes(others, run.folder.root, waiting), versions(), str(run.folder.root))
    return nodes


def start(
    workers: WorkerGroup,
    run: Run,
    settings: Settings,
    project: str,
    explicit: Mapping[str, str],
    waiting: Waiting,
) -> None:
    """Have all ranks import the work, then begin it. Raises as WorkerGroup does."""
    port = workers.prepare(run.work, waiting)
    specs = {
        place.rank: RankSpec(
            environment=RankEnvironment(
                rank=place.rank,
                world_size=len(workers.places),
                local_rank=place.local_rank,
                local_world_size=place.local_world_size,
                host=place.host,
                master_address=workers.places[0].address,
                master_port=port,
                device_type="cuda" if settings.needs.gpus else "cpu",
                threads=settings.threads,
            ),
            project=project,
            job=run.job,
            explicit=explicit,
        )
        for place in workers.places
    }
    workers.begin(run.work, specs, waiting)


def supervise(
    workers: WorkerGroup,
    run: Run,
    settings: Settings,
    phases: Phases,
    view: RunView,
    stop: StopSignals,
) -> Outcome:
    """Follow the ranks to their end. Raises WorkersFailed, and StopRequested before any step."""
    controller = Controller(
        group=workers, limits=settings.limits, view=view, stop=stop, events=run.folder.events
    )
    try:
        return controller.supervise()
    finally:
        phases.current = controller.phase
