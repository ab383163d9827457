"""Pure: how tokens per optimizer step become sequences, ranks and rounds."""

from collections.abc import Sequence
from dataclasses import dataclass

from trainer.config import JobConfig
from trainer.islands.share import dealt


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

    weights: tuple[float, ...] = ()
    """How large these are, relative to each other; none are equal."""

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
        return max(self.sequences_of_islands)

    @property
    def sequences_of_islands(self) -> tuple[int, ...]:
        """How many of these each island takes."""
        return dealt(self.sequences_per_step, self.weights or (1.0,) * self.islands)

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
        chosen for every round, as many as full sequences need. Of several islands, the most."""
        return max(self.rounds_of_islands)

    @property
    def rounds_of_islands(self) -> tuple[int, ...]:
        """The same of each island."""
        return tuple(map(self._rounds_for, self.sequences_of_islands))

    def _rounds_for(self, sequences: int) -> int:
        if self.group_size == 0:
            room = self.data_ranks * self.max_tokens_per_device
            return max(1, -(-sequences * self.seq_len // room))
        most_per_group = -(-sequences // self.groups)
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
        if len(set(self.weights)) > 1:
            batch += f", {_listed(self.sequences_of_islands)} on the {self.islands} islands"
        elif self.islands > 1:
            most = "up to " if self.sequences_per_step % self.islands else ""
            batch += f", {most}{self.sequences_per_island} on each of {self.islands} islands"
        if self.group_size == 0:
            return (
                f"{batch}; {self.data_ranks} ranks × up to {self.max_tokens_per_device} tokens, in "
                "groups chosen for every round"
            )
        rounds = str(self.rounds)
        if len(set(self.rounds_of_islands)) > 1 and len(set(self.weights)) > 1:
            rounds = _listed(self.rounds_of_islands)
        who = "ranks" if self.group_size == 1 else f"groups of {self.group_size} ranks"
        line = (
            f"{batch}; {self.groups} {who} × up to {self.sequences_per_device} sequences"
            f" → {rounds} round{'s' if rounds != '1' else ''}"
        )
        if self.idle_slots:
            line += f", {self.idle_slots} idle {'rank' if self.group_size == 1 else 'group'}-rounds"
        return line


def _listed(numbers: Sequence[int]) -> str:
    *first, last = map(str, numbers)
    return f"{', '.join(first)} and {last}"


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
        weights=job.comms.island.weights(parallel.island) if parallel.island > 1 else (),
        group_size=0 if parallel.sp == "auto" else parallel.sp,
    )
