"""Who does what in a run by rewards: messages in, actions out. Pure; time is an argument."""

from collections.abc import Mapping, Sequence
from typing import Any

from trainer.rl.conducting.actions import Actions
from trainer.rl.config import RlConfig, RolloutConfig
from trainer.rl.messages import FromRollout, FromTrainer
from trainer.rl.rewards.outcome import RewardResult


class Conductor:
    """The one owner of prompts and steps. One thread calls it, and carries out what it returns."""

    def __init__(
        self,
        rl: RlConfig,
        rollout: RolloutConfig,
        *,
        seed: int,
        last_version: int,
        store: tuple[str, int],
        task_size: int | None = None,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        """`last_version` is how many steps by rewards the run has; `task_size` how many prompts it
        may use, None for any number; `store` the host and port of the channels' store; `state` an
        earlier `snapshot`, once through JSON."""

    def on_trainer(self, message: FromTrainer, now_s: float) -> Actions:
        """Take what the first rank that trains said."""

    def on_rollout(self, worker: str, message: FromRollout, now_s: float) -> Actions:
        """Take what a worker said; what one says that is not up any more changes nothing."""

    def on_rewards(self, results: Sequence[RewardResult], now_s: float) -> Actions:
        """Take results of the requests in `Actions.rewards`, in any order."""

    def rollout_up(self, worker: str, now_s: float) -> Actions:
        """A worker runs, under a name that was never used before."""

    def rollout_lost(self, worker: str, reason: str, now_s: float) -> Actions:
        """A worker is gone."""

    def trainers_lost(self, now_s: float) -> Actions:
        """The ranks that train are gone or recover; a TrainerReady comes once they are back."""

    def tick(self, now_s: float) -> Actions:
        """Some time has passed; call it every second or so, and after nothing else."""

    @property
    def done(self) -> bool:
        """Whether the last step is committed."""

    def snapshot(self) -> dict[str, Any]:
        """JSON-able; for `state`."""

    def status(self) -> dict[str, Any]:
        """For the screen: version, steps, prompts by state, workers, reward, staleness, waits."""
