"""Which answers take part in a step, with how many tokens, and in which blocks. No torch.

Guarantees, each asserted in tests/trainer/rl/engine/test_scheduler.py:
- a step has at most `forward_tokens` rows, and every answer that only needs its next token has one;
- answers start in the order in which they were asked for, save that those which wait for a prompt
  that another one is computing let others pass;
- an answer never writes to a block that another one holds;
- where blocks run out, the youngest answers give theirs back and start again later; the oldest
  always goes on.
"""

from bisect import insort
from collections.abc import Iterable
from dataclasses import dataclass

from trainer.rl.engine.blocks import BlockPool
from trainer.rl.engine.config import EngineConfig
from trainer.rl.engine.drafts import draft_length
from trainer.rl.engine.sequence import Sequence


class Work:
    """Rows of one sequence in a step: known tokens that are not stored yet, then the draft."""

    __slots__ = ("draft", "draws", "guess", "rows", "sequence", "total_rows")

    def __init__(self, sequence: Sequence, rows: int) -> None:
        self.sequence = sequence
        self.rows = rows
        self.draft: list[int] = []
        self.guess: list[int] = []
        """First token of the longest draft there was, whether or not it is checked."""
        self.total_rows = rows
        """Known and guessed tokens."""
        self.draws = rows == len(sequence.tokens) - sequence.stored
        """Whether the answer gets a token out of this step."""


@dataclass(frozen=True, kw_only=True)
class Speculation:
    """What decides the length of drafts in a step."""

    longest: int
    acceptance: float
    fixed_s: float
    row_s: float


class Scheduler:
    """Holds the blocks and the order of the answers."""

    def __init__(self, config: EngineConfig, num_blocks: int) -> None:
        self._config = config
        self.pool = BlockPool(num_blocks)
        self.running: list[Sequence] = []
        self.waiting: list[Sequence] = []
        self.preemptions = 0
        self.copied_blocks = 0

    def add(self, sequence: Sequence) -> None:
        """Put a sequence in the queue."""
        insort(self.waiting, sequence, key=_order)

    def remove(self, sequence: Sequence) -> None:
        """Drop a finished or cancelled sequence and free what it held."""
        if sequence in self.running:
            self.running.remove(sequence)
        else:
            self.waiting.remove(sequence)
        self.pool.release(sequence.forget())

    def restart(self, *, all_of_them: bool) -> None:
        """Send back to the queue, so that keys and values are computed anew, those which have drawn
        nothing or whose known tokens are still being computed; or all."""
        for sequence in list(self.running):
            if all_of_them or sequence.pending > 1 or not sequence.answer.logprobs:
                self._send_back(sequence)

    def plan(
        self, epoch: int, speculation: Speculation | None
    ) -> tuple[list[Work], list[tuple[int, int]]]:
        """The works of the next step, those of one known token first, and blocks to copy before
        it, (from, to)."""
        self._admit(epoch)
        works = assign_rows(self.running, self._config.forward_tokens)
        if speculation is not None:
            self._add_drafts(works, speculation)
        return self._with_blocks(works)

    def _admit(self, epoch: int) -> None:
        reserved = 0
        for sequence in list(self.waiting):
            if len(self.running) >= self._config.max_sequences:
                return
            source = _prompt_holder(sequence, epoch)
            if source is None and _prompt_is_under_way(sequence, epoch):
                continue
            needed = self._blocks_for(len(sequence.tokens) + 1)
            needed -= 0 if source is None else sequence.prompt_tokens // self._config.block_tokens
            # A block more per running sequence keeps one that was just sent back from coming
            # straight in again.
            spare = len(self.running) + reserved
            if self.running and needed + spare > self.pool.num_free:
                return
            reserved += needed
            sequence.kv_epoch, sequence.admitted = epoch, True
            if source is not None:
                self._share_prompt(sequence, source)
            self.waiting.remove(sequence)
            insort(self.running, sequence, key=_order)

    def _share_prompt(self, sequence: Sequence, source: Sequence) -> None:
        shared = source.blocks[: self._blocks_for(sequence.prompt_tokens)]
        self.pool.share(shared)
        sequence.blocks = list(shared)
        # One token is left to compute: its row is what the first new token is drawn from.
        sequence.stored = min(sequence.prompt_tokens, len(sequence.tokens) - 1)
        if source.routes:
            routing = source.routing()
            assert routing is not None
            sequence.routes = [routing[: sequence.stored]]

    def _add_drafts(self, works: list[Work], speculation: Speculation) -> None:
        drafted = [work for work in works if work.rows == 1 and work.draws]
        drafts = [self._draft(work.sequence, speculation.longest) for work in drafted]
        length = draft_length(
            [len(draft) for draft in drafts],
            other_rows=sum(work.rows for work in works) - len(drafted),
            acceptance=speculation.acceptance,
            fixed_s=speculation.fixed_s,
            row_s=speculation.row_s,
            most_rows=self._config.forward_tokens,
        )
        for work, draft in zip(drafted, drafts, strict=True):
            work.draft, work.guess = draft[:length], draft[:1]
            work.total_rows = work.rows + len(work.draft)

    def _draft(self, sequence: Sequence, longest: int) -> list[int]:
        copies = sequence.group.copies
        left = sequence.sampling.max_new_tokens - len(sequence.answer.tokens) - 1
        return [] if copies is None else copies.draft(sequence.tokens, min(longest, left))

    def _with_blocks(self, works: list[Work]) -> tuple[list[Work], list[tuple[int, int]]]:
        """Give every work the blocks it writes to, oldest first, at the cost of the youngest."""
        ready: list[Work] = []
        copies: dict[int, int] = {}
        for work in sorted(works, key=lambda work: work.sequence.order):
            if not work.sequence.admitted:
                continue
            while not self._reserve(work, copies):
                youngest = self.running[-1]
                self._send_back(youngest)
                self.preemptions += 1
                if youngest is work.sequence:
                    break
            else:
                ready.append(work)
        held = self.pool.holders
        self.copied_blocks += len(copies)
        ready.sort(key=lambda work: work.rows > 1)
        return ready, [(old, new) for new, old in copies.items() if held[new]]

    def _reserve(self, work: Work, copies: dict[int, int]) -> bool:
        """Take blocks for what the work writes; False, with what was taken kept, if none is left.

        `copies` has the target of each copy and its source.
        """
        pool, blocks, size = self.pool, work.sequence.blocks, self._config.block_tokens
        stored = work.sequence.stored
        needed = -(-(stored + work.total_rows) // size)
        while len(blocks) < needed:
            block = pool.take()
            if block is None:
                return False
            blocks.append(block)
        for at in range(stored // size, needed):
            old = blocks[at]
            if pool.holders[old] > 1:
                block = pool.take()
                if block is None:
                    return False
                pool.release([old])
                blocks[at] = block
                copies[block] = old
        return True

    def _send_back(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self.pool.release(sequence.forget())
        self.add(sequence)

    def _blocks_for(self, tokens: int) -> int:
        return -(-tokens // self._config.block_tokens)


def assign_rows(running: Iterable[Sequence], forward_tokens: int) -> list[Work]:
    """One row for each sequence that needs only its next token, then what is left of the budget
    to the pending tokens of the others, oldest first."""
    works, prompts = [], []
    for sequence in running:
        if len(sequence.tokens) - sequence.stored == 1:
            works.append(Work(sequence, 1))
        else:
            prompts.append(sequence)
    left = forward_tokens - len(works)
    for sequence in prompts:
        rows = min(left, sequence.pending)
        if rows < 1:
            break
        works.append(Work(sequence, rows))
        left -= rows
    return works


def _prompt_holder(sequence: Sequence, epoch: int) -> Sequence | None:
    """A sequence of the same group whose blocks hold the whole prompt under these weights."""
    if sequence.prompt_tokens < 2:
        return None
    for other in sequence.group.unfinished:
        if other.kv_epoch == epoch and other.stored >= sequence.prompt_tokens:
            return other
    return None


def _prompt_is_under_way(sequence: Sequence, epoch: int) -> bool:
    return sequence.prompt_tokens > 1 and any(
        other.admitted and other.kv_epoch == epoch for other in sequence.group.unfinished
    )


def _order(sequence: Sequence) -> int:
    return sequence.order
