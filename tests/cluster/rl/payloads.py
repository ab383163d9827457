"""Small real work for processes that sample, and for the first rank that trains."""

from cluster.rank import RankControl, RankSpec
from cluster.reading import Outcome
from cluster.rl.rollout_worker import RolloutControl, RolloutSpec
from trainer.errors import DataError
from trainer.rl.ledger_records import Kept
from trainer.rl.mailbox import MailboxClosedError
from trainer.rl.messages import Answer, Answered, TrainerReady


def echo(spec: RolloutSpec, control: RolloutControl) -> None:
    """Answers every prompt with its own name, at once."""
    while True:
        try:
            message = control.post.inbox.take(0.05)
        except MailboxClosedError:
            return
        if isinstance(message, Answer):
            kept = Kept(payload={"by": spec.name, "number": message.number}, oldest=0, newest=0)
            control.post.outbox.put(Answered(lease_id=message.lease_id, kept=kept))


def refuse(spec: RolloutSpec, control: RolloutControl) -> None:
    """Cannot work."""
    raise DataError(f"{spec.name}: questions.jsonl:3 has no field prompt")


def wait_for_mail(spec: RankSpec, control: RankControl) -> Outcome:
    """A rank that says that it is ready and waits for its first batch, which never comes."""
    control.status.enter("training", 0)
    if spec.environment.rank == 0:
        control.post.outbox.put(TrainerReady(version=0, trainers=spec.environment.world_size))
        control.post.inbox.take()
    return Outcome(kind="stopped", step=0, checkpoint=None)
