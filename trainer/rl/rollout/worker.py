"""A worker that samples: prompts in, answers out, weights from a channel."""

from collections.abc import Callable

from trainer.config import JobConfig
from trainer.rl.mailbox import Mailbox
from trainer.rl.messages import FromRollout, ToRollout


def run_rollouts(
    job: JobConfig,
    *,
    name: str,
    host: str,
    device: str,
    threads: int,
    inbox: Mailbox[ToRollout],
    outbox: Mailbox[FromRollout],
    should_stop: Callable[[], bool],
) -> None:
    """Answer prompts until `inbox` is closed or `should_stop`.

    `name` is the worker's in channels' places, `host` the machine's, as the ranks that train name
    theirs; `device` is torch's name of it, `threads` the compute threads. The tokenizer is read
    from the run folder, where the first rank that trains writes it; it is waited for.
    """
