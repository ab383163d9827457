"""Where a run's steps come from, at which rate they train, and who follows them."""

from comms.config import RankEnvironment
from comms.groups import own_group
from trainer.assembly import Assembly
from trainer.config import JobConfig
from trainer.data.corpus import Corpus
from trainer.data.stream import TokenStream
from trainer.feed import Feed, StepFeed
from trainer.job import Followers, Listeners, NoFollowers
from trainer.planner.batch import BatchArithmetic
from trainer.planner.protocol import Planner
from trainer.restored import share_of
from trainer.rl.mail import TrainerMail
from trainer.rl.opening import open_rewards
from trainer.schedule import Schedule, build_schedule, followed_by
from trainer.standing import State


def open_steps(
    config: JobConfig,
    environment: RankEnvironment,
    assembly: Assembly,
    corpus: Corpus,
    planner: Planner,
    arithmetic: BatchArithmetic,
    state: State,
    listeners: Listeners,
    mail: TrainerMail | None,
) -> tuple[Feed, Followers]:
    """The steps that are still to do, and who is given their weights. All ranks call it."""
    supervised = open_feed(config, environment, assembly, corpus, planner, arithmetic, state)
    if not config.rl.enabled:
        return supervised, NoFollowers()
    rewards = open_rewards(
        config,
        environment,
        assembly,
        planner,
        supervised,
        mail=mail,
        padding_token=corpus.eos_id,
        should_stop=listeners.should_stop,
    )
    return rewards.feed, rewards.followers


def open_feed(
    config: JobConfig,
    environment: RankEnvironment,
    assembly: Assembly,
    corpus: Corpus,
    planner: Planner,
    arithmetic: BatchArithmetic,
    state: State,
) -> StepFeed:
    """The stream from the first step that is still to do, prepared on a group of its own."""
    stream = TokenStream(
        corpus,
        config.data,
        seed=config.run.seed,
        sequences_per_step=arithmetic.sequences_per_step,
    )
    layout = assembly.layout
    weights = config.comms.island.weights(layout.island) if layout.island > 1 else (1.0,)
    group = own_group(layout.islands(), backend="gloo")
    assert group is not None
    return StepFeed(
        stream,
        planner,
        data_rank=layout.data_rank(environment.rank),
        share=share_of(layout, environment.rank, weights, state.restored),
        group=group,
        steps=state.numeric.steps_left(supervised_steps(config)),
    )


def supervised_steps(config: JobConfig) -> int:
    """The first steps, which train on the recipe's data: all of them in a run without rewards."""
    return config.rl.supervised_steps if config.rl.enabled else config.train.steps


def schedule_of(config: JobConfig) -> Schedule:
    """The learning rate of each step: what the recipe schedules, and that of steps by rewards where
    they have their own."""
    if not config.rl.enabled or config.rl.lr is None:
        return build_schedule(config.sched, steps=config.train.steps, peak=config.optim.lr)
    last, lr = config.rl.supervised_steps, config.rl.lr
    before = build_schedule(config.sched, steps=max(1, last), peak=config.optim.lr)
    return followed_by(
        before, after=last, steps=config.train.steps, peak=lr, floor=config.rl.final_lr_ratio
    )
