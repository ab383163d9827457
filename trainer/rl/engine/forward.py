"""One forward of a decoder for rows of many sequences.

T rows, D model width, R rows whose next token is wanted, V vocabulary, K key and value heads,
b tokens per block.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trainer.model.decoder import Decoder
from trainer.model.moe import Routing
from trainer.model.rope import Rotary, rotary
from trainer.rl.engine.attention import Chunk, DecodeReads, PagedAttention
from trainer.rl.engine.dense import Norm, Turns, runner
from trainer.rl.engine.kv import KvMemory
from trainer.rl.engine.paging import plan_reads
from trainer.rl.engine.scheduler import Work


class Forward:
    """Runs the decoder's own parameters with attention over stored keys and values."""

    def __init__(self, model: Decoder, memory: KvMemory, block_tokens: int) -> None:
        self._model = model
        self._memory = memory
        self._block_tokens = block_tokens
        self._device = next(model.parameters()).device
        self._kv_heads = model.architecture.num_kv_heads
        self._blocks = [runner(block) for block in model.layers]
        assert model.norm is not None
        self._norm = Norm(model.norm)
        self._angles = Angles(model)

    def reach(self, tokens: int) -> None:
        """Be ready for texts of this many tokens."""
        self._angles.reach(tokens)

    def __call__(self, works: Sequence[Work], rows_wanted: NDArray[np.int64]) -> Tensor:
        """Logits [R, V] of the wanted rows; stores keys and values of all rows.

        Rows of a work follow one another. Works of one known token come first.
        """
        tokens_T, positions_T, rows_TK = self._inputs(works)
        decode, chunks = self._reads(works)
        turns = Turns(self._angles.at(positions_T))
        x_TD = self._model.embedded(tokens_T)
        # Of the other rows, the last block has to leave no more than keys and values.
        wanted = None if len(rows_wanted) == x_TD.shape[0] else self._moved(rows_wanted)
        rows_left = [*[None] * (len(self._blocks) - 1), wanted]
        for run_block, kv, rows in zip(self._blocks, self._memory.layers, rows_left, strict=True):
            x_TD = run_block(x_TD, turns, PagedAttention(kv, rows_TK, decode, chunks), rows)
        return self._model.vocabulary.logits(self._norm(x_TD), self._model.output_weight_VD)

    def _inputs(self, works: Sequence[Work]) -> tuple[Tensor, Tensor, Tensor]:
        size, heads = self._block_tokens, self._kv_heads
        tokens: list[int] = []
        positions: list[int] = []
        blocks: list[int] = []
        for work in works:
            sequence, rows = work.sequence, work.total_rows
            at = sequence.stored
            if rows == 1:
                tokens.append(sequence.tokens[at])
                positions.append(at)
                blocks.append(sequence.blocks[at // size])
                continue
            tokens += sequence.tokens[at : at + work.rows]
            tokens += work.draft
            positions += range(at, at + rows)
            blocks += [sequence.blocks[place // size] for place in range(at, at + rows)]
        positions_T = np.array(positions)
        first_T = np.array(blocks) * (heads * size) + positions_T % size
        rows_TK = first_T[:, None] + np.arange(heads) * size
        return self._moved(np.array(tokens)), self._moved(positions_T), self._moved(rows_TK)

    def _reads(self, works: Sequence[Work]) -> tuple[DecodeReads | None, list[Chunk]]:
        decodes = [work for work in works if work.rows == 1]
        decode = None
        if decodes:
            reads = plan_reads(
                [work.sequence.blocks for work in decodes],
                [work.total_rows for work in decodes],
                [work.sequence.stored for work in decodes],
                self._block_tokens,
            )
            decode = DecodeReads(reads, self._block_tokens, self._device)
        return decode, self._chunks(works[len(decodes) :], sum(w.total_rows for w in decodes))

    def _chunks(self, works: Sequence[Work], begin: int) -> list[Chunk]:
        chunks: list[Chunk] = []
        for work in works:
            start, end = work.sequence.stored, begin + work.rows
            if not start and chunks and not chunks[-1].start:
                chunks[-1] = replace(chunks[-1], ends=(*chunks[-1].ends, end))
            else:
                blocks = torch.tensor(work.sequence.blocks, device=self._device)
                chunks.append(Chunk(begin, (end,), start, blocks))
            begin = end
        return chunks

    def _moved(self, array: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(array).to(self._device, non_blocking=True)


def wanted_rows(works: list[Work]) -> NDArray[np.int64]:
    """Rows after which a token is drawn: of the last known token, and of all guessed ones."""
    wanted: list[int] = []
    begin = 0
    for work in works:
        end = begin + work.total_rows
        if work.draws:
            wanted.extend(range(begin + work.rows - 1, end))
        begin = end
    return np.array(wanted, dtype=np.int64)


class Angles:
    """Rotary angles of all positions seen so far, made twice as many whenever they run out."""

    def __init__(self, model: Decoder) -> None:
        self._architecture = model.architecture
        self._device = next(model.parameters()).device
        self._table = self._made(64)

    def reach(self, tokens: int) -> None:
        """Have angles for texts of this many tokens."""
        size = self._table.cos_Th.shape[0]
        if tokens > size:
            self._table = self._made(max(tokens, 2 * size))

    def at(self, positions_T: Tensor) -> Rotary:
        """Angles of these positions, below the tokens reached."""
        return Rotary(
            cos_Th=self._table.cos_Th.index_select(0, positions_T),
            sin_Th=self._table.sin_Th.index_select(0, positions_T),
        )

    def _made(self, tokens: int) -> Rotary:
        scaling = self._architecture.rope_scaling
        if scaling is not None and scaling.kind == "dynamic":
            # Beyond it every position would turn anew; the engine refuses such lengths.
            tokens = scaling.original_context_tokens
        positions = torch.arange(tokens, device=self._device)
        return rotary(self._architecture, positions, (tokens,))


class RoutingRecorder:
    """Keeps what the routers of a decoder decide, from one `take` to the next."""

    def __init__(self, model: Decoder) -> None:
        self._decided: list[Tensor] = []
        for mixture in model.mixtures:
            mixture.gate.register_forward_hook(self._note)

    def _note(self, _: nn.Module, __: tuple[Tensor, ...], routing: Routing) -> None:
        self._decided.append(routing.experts_Tk)

    def take(self, lengths: Sequence[int]) -> list[NDArray[np.int16]]:
        """Per run of rows, the experts [rows, mixture layers, k] of the forward just done."""
        experts_TLk = torch.stack(self._decided, dim=1).to(torch.int16).cpu().numpy()
        self._decided.clear()
        ends = np.cumsum([0, *lengths])
        return [experts_TLk[a:b] for a, b in pairwise(ends)]

    def clear(self) -> None:
        """Forget what was decided since the last `take`."""
        self._decided.clear()
