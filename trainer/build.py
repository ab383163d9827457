"""Join the parts of one training process: the one place that knows them all."""

import math
from functools import partial

import torch
import torch.distributed as dist

from comms.config import RankEnvironment
from comms.groups import broadcast_bytes, device_of
from comms.ledger import Ledger
from comms.telemetry.recorder import Recorder
from parallel.experts.placement import loan_cost_rows
from trainer.assembly import Assembly, assemble
from trainer.config import JobConfig
from trainer.data.corpus import Corpus
from trainer.data.tokenizer import Tokenizer
from trainer.elastic import ElasticExperts
from trainer.errors import DataError
from trainer.host_map import map_hosts
from trainer.islands.opening import open_islands
from trainer.job import Job, Listeners, Rules
from trainer.links import followers_of, open_links
from trainer.model.size import step_flops
from trainer.planner.batch import batch_of
from trainer.planner.protocol import Planner
from trainer.planning import build_planner
from trainer.rl.mail import TrainerMail
from trainer.run_folder import RunFolder
from trainer.standing import open_state
from trainer.step_sources import open_steps, schedule_of
from trainer.stopwatch import Stopwatch

PHASES = {"begin": "rounds", "summed": "vote", "voted": "update", "updated": "report"}
"""Of a step, by the mark at which each begins; before the first it waits for its data."""


def build(
    config: JobConfig,
    environment: RankEnvironment,
    *,
    tokenizer: Tokenizer,
    corpus: Corpus,
    listeners: Listeners,
    recorder: Recorder | None = None,
    mail: TrainerMail | None = None,
) -> Job:
    """Make every part and join them. All ranks call it, after joining; rank 0 with its `mail`."""
    listeners.status.enter("building")
    require_same_data_everywhere(corpus, environment)
    folder = RunFolder.of(config.run)
    ledger = Ledger(recorder=recorder)
    hosts = map_hosts(environment)
    assembly = assemble(
        config, environment, tokenizer_vocab=tokenizer.vocab_size, ledger=ledger, hosts=hosts
    )
    arithmetic = batch_of(config, environment.world_size)
    listeners.status.enter("loading")
    islands = open_islands(config, assembly, environment, recorder=recorder)
    state = open_state(config, folder, environment, assembly, corpus, arithmetic, islands)
    links = open_links(
        hosts,
        environment,
        followers_of(assembly, config.parallel),
        assembly.layout,
        folder,
        step=state.progress.step,
    )
    planner = build_planner(config, environment, assembly, arithmetic, islands, links)
    feed, followers = open_steps(
        config, environment, assembly, corpus, planner, arithmetic, state, listeners, mail
    )
    ledger.take()
    return Job(
        environment=environment,
        folder=folder,
        rules=rules_of(config, assembly),
        assembly=assembly,
        progress=state.progress,
        planner=planner,
        feed=feed,
        followers=followers,
        saver=state.saver,
        memory=state.memory,
        numeric=state.numeric,
        elastic=open_elastic(assembly, planner),
        islands=islands,
        links=links,
        ledger=ledger,
        stopwatch=Stopwatch(device_of(environment), partial(enter_phase, ledger)),
        listeners=listeners,
    )


def enter_phase(ledger: Ledger, mark: str) -> None:
    """Record the phase of a step that begins at a mark of its stopwatch."""
    ledger.enter(PHASES[mark])


def require_same_data_everywhere(corpus: Corpus, environment: RankEnvironment) -> None:
    """Raise DataError where this rank's host has other data than rank 0's: all ranks cut their
    part from what must be one stream."""
    own = corpus.fingerprint.encode()
    assert dist.group.WORLD is not None
    first = broadcast_bytes(own if environment.rank == 0 else b"", group=dist.group.WORLD)
    if own != first:
        raise DataError(
            f"the data on {environment.host} (rank {environment.rank}) is not what rank 0 has; "
            "give all hosts the same files and tokenizer, and for data.source=python_stdlib the "
            "same Python release"
        )


def rules_of(config: JobConfig, assembly: Assembly) -> Rules:
    """The numbers that the loop goes by, read once."""
    moe = assembly.architecture.moe
    linear_flops, quadratic_flops = step_flops(assembly.architecture, config.data.seq_len)
    return Rules(
        total_steps=config.train.steps,
        # With `dgc`, ranks have clipped before momentum was added.
        max_grad_norm=(
            math.inf if config.comms.replica.method == "dgc" else config.optim.max_grad_norm
        ),
        bias_update_rate=0.0 if moe is None else moe.bias_update_rate,
        schedule=schedule_of(config),
        seed=config.run.seed,
        linear_flops_per_token=linear_flops,
        quadratic_flops=quadratic_flops,
        rebalance_interval_steps=(
            config.parallel.rebalance_interval_steps if assembly.layout.ep > 1 else 0
        ),
    )


def open_elastic(assembly: Assembly, planner: Planner) -> ElasticExperts | None:
    """What moves experts between ranks, where they are spread. All ranks call it."""
    architecture, layout = assembly.architecture, assembly.layout
    if layout.ep == 1 or architecture.moe is None:
        return None
    moe = architecture.moe
    parameters = 3 * (moe.dispatch_size or architecture.hidden_size) * moe.expert_intermediate_size
    rows = loan_cost_rows(
        expert_bytes=parameters * assembly.dtype.itemsize,
        expert_parameters=parameters,
        link_bytes_per_s=planner.hardware.link_bytes_per_s,
        flops_per_s=planner.hardware.flops_per_s,
    )
    # Every rank has measured its own rates, and all must decide alike.
    agreed = torch.tensor(rows, dtype=torch.float64)
    dist.all_reduce(agreed, op=dist.ReduceOp.MAX)
    return ElasticExperts(
        assembly.weights,
        assembly.optimizer,
        expert_groups=layout.data_ranks // layout.ep,
        loan_rows=agreed.item(),
    )
