"""Pure: how tokens per optimizer step become sequences, ranks and rounds."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class BatchArithmetic:
    """The one batch size a user gives, and everything that follows from it."""

    global_batch_tokens: int
    seq_len: int
    max_tokens_per_device: int
    world_size: int

    @property
    def sequences_per_step(self) -> int:
        """Packed sequences of one optimizer step, over all ranks."""
        return self.global_batch_tokens // self.seq_len

    @property
    def sequences_per_device(self) -> int:
        """Most sequences one rank holds in a round."""
        return self.max_tokens_per_device // self.seq_len

    @property
    def rounds(self) -> int:
        """Forward and backward passes per optimizer step (gradient accumulation)."""
        most_per_rank = -(-self.sequences_per_step // self.world_size)
        return -(-most_per_rank // self.sequences_per_device)

    @property
    def idle_slots(self) -> int:
        """Rank-rounds of one step in which a rank has no sequence."""
        even, extra = divmod(self.sequences_per_step, self.world_size)
        busy = 0
        for rank in range(self.world_size):
            busy += -(-(even + (rank < extra)) // self.sequences_per_device)
        return self.rounds * self.world_size - busy

    def explain(self) -> str:
        """The derivation, in one line for people."""
        line = (
            f"{self.global_batch_tokens:,} tokens per step = {self.sequences_per_step} sequences × "
            f"{self.seq_len}; {self.world_size} ranks × up to {self.sequences_per_device} sequences"
            f" → {self.rounds} round{'s' if self.rounds != 1 else ''}"
        )
        if self.idle_slots:
            line += f", {self.idle_slots} idle rank-rounds"
        return line
