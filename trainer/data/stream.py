"""The stream of packed sequences: a function of the data, the seed and the step alone.

Step s takes the rows [s·n, (s+1)·n) of the stream (see `rows.py`), n sequences per step, whoever
asks: any number of ranks cuts the same sequences, and a resumed run goes on where it stopped
without reading what came before.

Guarantees, each asserted in tests/trainer/data/test_stream.py:
- in every epoch each pair of tokens of each document is in exactly one sequence;
- epochs differ in order, not in content;
- a stream that begins at step s yields what one that began at 0 yields from s on;
- it does not matter whether blocks were ready from the start or became ready meanwhile;
- a label is the next token of the same document.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from trainer.data.batch import IGNORED, Batch
from trainer.data.config import DataConfig
from trainer.data.corpus import Corpus
from trainer.data.order import Subject, permutation
from trainer.data.packing import Rows, pack
from trainer.data.rows import UNKNOWN, RowOrder, RowPlace
from trainer.data.sequence import PackedSequence, Segment
from trainer.data.store import TokenBlock
from trainer.errors import DataError

GROUPS_HELD = 3


@dataclass(frozen=True)
class _Group:
    """Rows of a few blocks, mixed. R rows, S segments."""

    order: NDArray[np.int64]
    """[R]: which row stands at each place."""

    ends: NDArray[np.int64]
    """[R]: one past the last segment of each row."""

    segments: NDArray[np.int64]
    """[S, 4]: block, document, start, length."""

    targets: NDArray[np.int64]
    """[S]: pairs of each segment that are trained on."""

    def sequence(self, place: int) -> PackedSequence:
        """The row at one place."""
        row = int(self.order[place])
        first = int(self.ends[row - 1]) if row else 0
        last = int(self.ends[row])
        segments = tuple(
            Segment(block=block, document=document, start=start, length=length)
            for block, document, start, length in self.segments[first:last].tolist()
        )
        return PackedSequence(segments=segments, num_targets=int(self.targets[first:last].sum()))


class TokenStream:
    """Sequences by step, and their tokens. One thread at a time."""

    def __init__(
        self, corpus: Corpus, config: DataConfig, *, seed: int, sequences_per_step: int
    ) -> None:
        self._corpus = corpus
        self._seq_len = config.seq_len
        self._seed = seed
        self._per_step = sequences_per_step
        self._rows = RowOrder(corpus.num_blocks, seed=seed, group_size=config.shuffle_blocks)
        self._group = lru_cache(maxsize=GROUPS_HELD)(self._mix)
        corpus.begin(seed)

    def sequences(self, step: int) -> tuple[PackedSequence, ...]:
        """The global batch of `step`, counted from 0; the same on every rank.

        Waits until the blocks it needs are tokenised. Raises what tokenising failed with, and
        DataError where no document can be used.
        """
        position = step * self._per_step
        found: list[PackedSequence] = []
        while len(found) < self._per_step:
            place = self._find(position + len(found))
            group = self._group(place.epoch, place.group)
            count = min(place.left, self._per_step - len(found))
            found += [group.sequence(place.row + i) for i in range(count)]
        return tuple(found)

    def batch(
        self, sequences: Sequence[PackedSequence], *, padded: bool = True, multiple: int = 1
    ) -> Batch:
        """The tokens of some sequences, one after the other; of none, padding.

        `padded`: each takes seq_len tokens. Otherwise each takes what it has, and the last one is
        padded until `multiple` divides the total.
        """
        rows = self._row_lengths(sequences, padded, multiple)
        total = sum(rows)
        tokens_T = np.full(total, self._corpus.eos_id, dtype=np.int64)
        labels_T = np.full(total, IGNORED, dtype=np.int64)
        positions_T = np.empty(total, dtype=np.int64)
        ramp = np.arange(max(rows))
        ends: list[int] = []
        at = 0
        for number, row_tokens in enumerate(rows):
            stop = at + row_tokens
            for segment in sequences[number].segments if sequences else ():
                end = at + segment.length
                self._fill(segment, tokens_T[at:end], labels_T[at:end])
                positions_T[at:end] = ramp[: segment.length]
                ends.append(end)
                at = end
            if at < stop:
                positions_T[at:stop] = ramp[: stop - at]
                ends.append(stop)
            at = stop
        return Batch(
            tokens_T=torch.from_numpy(tokens_T),
            labels_T=torch.from_numpy(labels_T),
            positions_T=torch.from_numpy(positions_T),
            document_ends=tuple(ends),
            sequence_ends=tuple(np.cumsum(rows).tolist()),
            sequence_tokens=tuple(s.num_tokens for s in sequences) or (0,),
            sequence_targets=tuple(s.num_targets for s in sequences) or (0,),
        )

    def _row_lengths(
        self, sequences: Sequence[PackedSequence], padded: bool, multiple: int
    ) -> list[int]:
        if padded:
            rows = [self._seq_len] * max(len(sequences), 1)
        else:
            rows = [s.num_tokens for s in sequences] or [multiple]
        rows[-1] += -sum(rows) % multiple
        return rows

    def epoch(self, step: int) -> float:
        """Passes over the data before `step`; an estimate until all blocks are tokenised."""
        rows = self._corpus.rows
        ready = rows[rows != UNKNOWN]
        total = ready.sum(dtype=np.int64) / max(len(ready), 1) * len(rows)
        return step * self._per_step / float(total) if total else 0.0

    def _find(self, position: int) -> RowPlace:
        while True:
            rows, ready = self._corpus.rows, self._corpus.num_ready
            if ready == len(rows) and not rows.any():
                raise DataError(
                    "no document can be used: all are empty, skipped, or one token long "
                    f"(skipped: {self._corpus.skipped}); correct the data or data.on_bad"
                )
            place = self._rows.find(position, rows, ready=ready)
            if isinstance(place, RowPlace):
                return place
            self._corpus.wait_for(self._rows.blocks(0, place).tolist())

    def _fill(
        self, segment: Segment, tokens_T: NDArray[np.int64], labels_T: NDArray[np.int64]
    ) -> None:
        block = self._corpus.block(segment.block)
        begin = int(block.offsets[segment.document]) + segment.start
        stretch = block.tokens[begin : begin + segment.length + 1]
        tokens_T[:] = stretch[:-1]
        labels_T[:] = stretch[1:]
        if block.mask is not None:
            labels_T[block.mask[begin + 1 : begin + segment.length + 1] == 0] = IGNORED

    def _mix(self, epoch: int, group: int) -> _Group:
        segments, targets, ends = [], [], []
        num_segments = 0
        for number in self._rows.blocks(epoch, group).tolist():
            block = self._corpus.block(number)
            rows = self._pack(block, epoch, number)
            blocks = np.full(len(rows.document), number)
            segments.append(np.stack((blocks, rows.document, rows.start, rows.length), axis=1))
            targets.append(_targets(block, segments[-1]))
            ends.append(rows.ends + num_segments)
            num_segments += len(blocks)
        joined = np.concatenate(ends)
        order = permutation(
            len(joined), seed=self._seed, epoch=epoch, subject=Subject.ROWS, number=group
        )
        return _Group(order, joined, np.concatenate(segments), np.concatenate(targets))

    def _pack(self, block: TokenBlock, epoch: int, number: int) -> Rows:
        lengths_D = block.lengths_D
        order = permutation(
            len(lengths_D), seed=self._seed, epoch=epoch, subject=Subject.DOCUMENTS, number=number
        )
        return pack(lengths_D, self._seq_len, self._corpus.packing, document_order=order)


def _targets(block: TokenBlock, segments: NDArray[np.int64]) -> NDArray[np.int64]:
    """[S]: how many labels of each segment are trained on."""
    _, document, start, length = segments.T
    if block.mask is None:
        return length
    before = np.concatenate(([0], np.cumsum(block.mask, dtype=np.int64)))
    # The label of a pair is the token after it.
    first = block.offsets[document] + start + 1
    return before[first + length] - before[first]
