"""Set up what judges a run's steps."""

from torch.distributed import ProcessGroup

from comms.config import RankEnvironment
from trainer.assembly import Assembly
from trainer.config import JobConfig
from trainer.islands.exchange import Islands
from trainer.numeric.back import WayBack
from trainer.numeric.guard import NumericGuard
from trainer.numeric.planted import read_planted
from trainer.numeric.policy import Limits
from trainer.numeric.rules import read_keys
from trainer.progress import Progress
from trainer.run_folder import RunFolder
from trainer.saving import Saver


def open_numeric(
    config: JobConfig,
    folder: RunFolder,
    environment: RankEnvironment,
    group: ProcessGroup,
    assembly: Assembly,
    saver: Saver,
    progress: Progress,
    islands: Islands | None,
) -> NumericGuard:
    """Every rank calls it once. `group` is the saver's."""
    numeric = read_keys(config.numeric, by_rewards=config.rl.enabled)
    layout = assembly.layout
    back = None
    if numeric.rolls_back:
        back = WayBack(
            keeping=config.keep,
            folder=folder,
            environment=environment,
            group=group,
            assembly=assembly,
            saver=saver,
            progress=progress,
            rollback_steps=numeric.rollback_steps,
        )
    guard = NumericGuard(
        config=numeric,
        limits=Limits(
            skipped_steps=config.train.max_skipped_steps, rollbacks=numeric.max_rollbacks
        ),
        progress=progress,
        environment=environment,
        first_rank=layout.island_of(environment.rank) * layout.island_ranks,
        island=None if islands is None else islands.number,
        events=folder.events,
        planted=read_planted(folder.planted),
        back=back,
    )
    assembly.weights.model.gradient_watch = guard.watch
    return guard
