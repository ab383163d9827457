"""A run as the user asked for it. Neither torch nor ray."""

from collections.abc import Mapping
from dataclasses import dataclass

from cluster.config import ClusterConfig
from cluster.recovery.config import RecoveryConfig
from cluster.watchdog.config import WatchdogConfig
from trainer.config import JobConfig
from trainer.run_folder import RunFolder

ROLLOUT_WORK = "cluster.rl.sampling:sample"
"""What every process that samples does, as `module:function`."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One start of a run."""

    job: JobConfig
    cluster: ClusterConfig
    watchdog: WatchdogConfig
    recovery: RecoveryConfig
    origins: Mapping[str, str]
    """Where each dotted key was set; "default" where it was not."""

    folder: RunFolder
    """Where the run keeps its files."""

    work: str
    """What every rank does, as `module:function`."""

    rollout_work: str = ROLLOUT_WORK
    """What every process that samples does."""

    def explicit(self) -> dict[str, str]:
        """Keys the user set, and where."""
        return {key: where for key, where in self.origins.items() if where != "default"}
