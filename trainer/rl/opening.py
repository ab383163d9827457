"""What a training process has besides where it learns by rewards."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch.distributed as dist

from comms.config import RankEnvironment
from comms.groups import side_group
from trainer.assembly import Assembly
from trainer.checkpoint.folder import saved_step_of
from trainer.config import JobConfig
from trainer.errors import RecipeError
from trainer.feed import Feed, agreed_plan
from trainer.job import StepDone
from trainer.model.config import Architecture
from trainer.planner.protocol import Planner
from trainer.rl.feed import Orders, PhasedFeed, RewardFeed
from trainer.rl.mail import TrainerMail
from trainer.rl.messages import Committed
from trainer.rl.publishing import Publisher
from trainer.rl.rules import max_response_tokens
from trainer.rl.work import WorkMaker
from trainer.spread import group_sizes

UNITS_PER_RANK = 4
"""Of samples that are computed together, at least: with fewer, ranks would wait for each other."""


@dataclass(frozen=True, kw_only=True)
class Rewards:
    """The parts of a training process that learns by rewards."""

    feed: Feed
    followers: "Workers"


class Workers:
    """Those who sample with the weights, seen from a rank that trains."""

    def __init__(
        self,
        publisher: Publisher,
        mail: TrainerMail | None,
        *,
        supervised_steps: int,
        last_step: int,
    ) -> None:
        self._publisher = publisher
        self._mail = mail
        self._supervised_steps = supervised_steps
        self._last_step = last_step

    def follow(self, done: StepDone) -> None:
        """Tell of a step by rewards, and give its weights unless it was the last."""
        version = done.step - self._supervised_steps
        if version < 1:
            return
        if self._mail is not None:
            saved = None if done.newest is None else saved_step_of(done.newest)
            self._mail.outbox.put(
                Committed(
                    version=version - 1,
                    saved=None if saved is None else max(0, saved - self._supervised_steps),
                    trained_s=done.trained_s,
                    waited_s=done.waited_s,
                )
            )
        if done.step < self._last_step:
            self._publisher.publish(version)

    def close(self) -> None:
        """Let the publication under way come to its end."""
        self._publisher.close()


def open_rewards(
    config: JobConfig,
    environment: RankEnvironment,
    assembly: Assembly,
    planner: Planner,
    supervised: Feed,
    *,
    mail: TrainerMail | None,
    padding_token: int,
    should_stop: Callable[[], bool],
) -> Rewards:
    """Join the steps by rewards to the supervised ones. All ranks call it, rank 0 with its mail.

    Raises RecipeError where nobody sends any.
    """
    if environment.rank == 0 and mail is None:
        raise RecipeError(
            "rl.enabled=true needs workers that sample, which only `braid run` and `braid submit` "
            "start; use one of them, or set rl.enabled to false"
        )
    supervised_steps, last_step = config.rl.supervised_steps, config.train.steps
    own_mail = mail if environment.rank == 0 else None
    publisher = Publisher(
        assembly.weights,
        rank=environment.rank,
        host=environment.host,
        deadline_s=config.rl.publish_within_s,
        tell=lambda message: None if own_mail is None else own_mail.outbox.put(message),
    )
    group = side_group()
    feed = RewardFeed(
        Orders(own_mail, group, should_stop),
        _maker(config, environment, assembly, planner, group, padding_token),
        publisher,
        mail=own_mail,
        trainers=environment.world_size,
        supervised_steps=supervised_steps,
        last_step=last_step,
    )
    return Rewards(
        feed=PhasedFeed(supervised, feed, supervised_steps=supervised_steps),
        followers=Workers(
            publisher, own_mail, supervised_steps=supervised_steps, last_step=last_step
        ),
    )


def _maker(
    config: JobConfig,
    environment: RankEnvironment,
    assembly: Assembly,
    planner: Planner,
    group: dist.ProcessGroup,
    padding_token: int,
) -> WorkMaker:
    layout = assembly.layout
    sizes = group_sizes(config, assembly.architecture, layout, assembly.ranks_per_host)
    tokens, ranks = config.train.max_tokens_per_device, max(sizes)
    return WorkMaker(
        data_rank=layout.data_rank(environment.rank),
        # Ranks that share a stream hold even numbers of tokens.
        longest_tokens=tokens if ranks == 1 else tokens // 2 * 2 * ranks,
        padding_token=padding_token,
        max_response_tokens=max_response_tokens(config.rl, config.rollout),
        choose=partial(agreed_plan, planner, group=group),
        prompt_units=UNITS_PER_RANK * layout.data_ranks
        if ranks == 1 and _can_share(assembly.architecture)
        else None,
    )


def _can_share(architecture: Architecture) -> bool:
    """Whether prompts can be there once: the statistics of routers count tokens as often as they
    are there, and dynamic scaling has another base for each document."""
    scaling = architecture.rope_scaling
    return architecture.moe is None and (scaling is None or scaling.kind != "dynamic")
