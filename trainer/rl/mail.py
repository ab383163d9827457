"""How the first rank that trains talks with the rest of a run by rewards."""

from dataclasses import dataclass

from trainer.rl.mailbox import Mailbox
from trainer.rl.messages import FromTrainer, ToTrainer


@dataclass(frozen=True)
class TrainerMail:
    """What comes in, and what goes out."""

    inbox: Mailbox[ToTrainer]
    outbox: Mailbox[FromTrainer]
