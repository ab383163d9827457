"""Pure: how tokens per optimizer step become sequences, ranks and rounds."""

from dataclasses import dataclass

from trainer.config import JobConfig


@dataclass(frozen=True, kw_only=True)
class BatchArithmetic:
    """The one batch size a user gives, and everything that follows from it."""

    global_batch_tokens: int
    seq_len: int
    max_tokens_per_device: int
    data_ranks: int
    """Ranks of an island that see different tokens."""

    islands: int = 1
    """Parts of every step, each for ranks of its own."""

    global_batch_sequences: int = 0
    """Packed sequences of one step, whatever their lengths; 0 derives them from the tokens."""

    group_size: int = 1
    """Ranks that hold one sequence together; 0 where the planner chooses for every round."""

    @property
    def sequences_per_step(self) -> int:
        """Packed sequences of one optimizer step, over all ranks of all islands."""
        return self.global_batch_sequences or self.global_batch_tokens // self.seq_len

    @property
    def sequences_per_island(self) -> int:
        """Of these, the most that one island takes."""
        return -(-self.sequences_per_step // self.islands)

    @property
    def sequences_per_device(self) -> int:
        """Most sequences of full length that one sequence group holds in a round."""
        return self.max_tokens_per_device * max(self.group_size, 1) // self.seq_len

    @property
    def groups(self) -> int:
        """Sequence groups of one round."""
        return self.data_ranks // max(self.group_size, 1)

    @property
    def rounds(self) -> int:
        """Forward and backward passes per optimizer step (gradient accumulation); where groups are
        chosen for every round, as many as full sequences need."""
        if self.group_size == 0:
            room = self.data_ranks * self.max_tokens_per_device
            return max(1, -(-self.sequences_per_island * self.seq_len // room))
        most_per_group = -(-self.sequences_per_island // self.groups)
        return -(-most_per_group // self.sequences_per_device)

    @property
    def idle_slots(self) -> int:
        """Group-rounds of one step of an island in which a group has no sequence."""
        if self.group_size == 0:
            return 0
        even, extra = divmod(self.sequences_per_island, self.groups)
        busy = 0
        for group in range(self.groups):
            busy += -(-(even + (group < extra)) // self.sequences_per_device)
        return self.rounds * self.groups - busy

    def explain(self) -> str:
        """The derivation, in one line for people."""
        if self.global_batch_sequences:
            batch = f"{self.sequences_per_step} sequences of up to {self.seq_len} tokens per step"
        else:
            batch = (
                f"{self.global_batch_tokens:,} tokens per step = {self.sequences_per_step} "
                f"sequences × {self.seq_len}"
            )
        if self.islands > 1:
            most = "up to " if self.sequences_per_step % self.islands else ""
            batch += f", {most}{self.sequences_per_island} on each of {self.islands} islands"
        if self.group_size == 0:
            return (
                f"{batch}; {self.data_ranks} ranks × up to {self.max_tokens_per_device} tokens, in "
                "groups chosen for every round"
            )
        who = "ranks" if self.group_size == 1 else f"groups of {self.group_size} ranks"
        line = (
            f"{batch}; {self.groups} {who} × up to {self.sequences_per_device} sequences"
            f" → {self.rounds} round{'s' if self.rounds != 1 else ''}"
        )
        if self.idle_slots:
            line += f", {self.idle_slots} idle {'rank' if self.group_size == 1 else 'group'}-rounds"
        return line


def batch_of(job: JobConfig, num_ranks: int) -> BatchArithmetic:
    """The recipe's batch on this many ranks."""
    parallel = job.parallel
    pp, tp = (1 if degree == "auto" else degree for degree in (parallel.pp, parallel.tp))
    return BatchArithmetic(
        global_batch_tokens=job.train.global_batch_tokens,
        global_batch_sequences=job.train.global_batch_sequences,
        seq_len=job.data.seq_len,
        max_tokens_per_device=job.train.max_tokens_per_device,
        data_ranks=num_ranks // (parallel.island * pp * tp),
        islands=parallel.island,
        group_size=0 if parallel.sp == "auto" else parallel.sp,
    )
