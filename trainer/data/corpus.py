"""The tokens of a recipe's data: which blocks there are, which are ready, and their content."""

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trainer.data.background import BackgroundTokeniser
from trainer.data.cache import REPORT_INTERVAL_S, digest, make_folder, wait_until
from trainer.data.config import DataConfig
from trainer.data.failure import forget_failure, found_failure
from trainer.data.index import VERSION, SourceIndex, cache_root, open_index
from trainer.data.packing import Packing
from trainer.data.rows import UNKNOWN
from trainer.data.store import RowTable, TokenBlock, TokenStore
from trainer.data.tokenising import Assignment
from trainer.data.tokenizer import Tokenizer

logger = logging.getLogger("braid")

WAIT_DEADLINE_S = 1800.0
"""Without a new block for so long, waiting for one is given up."""

BLOCKS_HELD_PER_MIXED = 4
"""Blocks kept mapped, per block of a group: two groups are in use where a step crosses them."""


class Corpus:
    """The tokenised data, filled by a background process while it is read.

    Rows are the packed sequences of a block; how many a block makes is known once it is ready:
    `rows` has them, [blocks], with -1 where a block was not ready when last looked, and
    `num_ready` counts the blocks that are.
    """

    def __init__(
        self,
        config: DataConfig,
        packing: Packing,
        index: SourceIndex,
        tokenizer: Tokenizer,
        *,
        background: bool,
    ) -> None:
        self.fingerprint = stream_fingerprint(config, packing, index, tokenizer)
        self.eos_id = tokenizer.eos_id
        self.packing: Packing = packing
        self.assignment = _assignment(config, packing, index, tokenizer)
        self._too_large = len(index.scan.too_large)
        self._store = TokenStore(Path(self.assignment.store), index.blocks.count)
        self._table = RowTable(self._store, config.seq_len, packing)
        self._table.create()
        self._look()
        self._may_start = background
        self._tokeniser: BackgroundTokeniser | None = None
        held = BLOCKS_HELD_PER_MIXED * config.shuffle_blocks
        self._read = lru_cache(maxsize=held)(self._store.read)
        if background:
            forget_failure(self.assignment.failure_path)

    @classmethod
    def open(cls, config: DataConfig, tokenizer: Tokenizer, *, background: bool) -> "Corpus":
        """Open the recipe's data, outside any collective.

        `background`: this process may start the tokenising process; one per host should, and open
        its corpus before others read from theirs. Raises DataError where the source cannot be
        read, ResourceError where the cache cannot be written.
        """
        packing = packing_of(config)
        return cls(config, packing, open_index(config), tokenizer, background=background)

    @property
    def num_blocks(self) -> int:
        """Blocks of the source."""
        return self._store.num_blocks

    @property
    def complete(self) -> bool:
        """Whether every block is ready."""
        return self.num_ready == self.num_blocks

    @property
    def skipped(self) -> int:
        """Documents left out by `on_bad: skip`, in the blocks that are ready."""
        return self._too_large + self._refused

    @property
    def tokenising_process_id(self) -> int | None:
        """The process that this corpus started, if it did."""
        return None if self._tokeniser is None else self._tokeniser.process_id

    def begin(self, seed: int) -> None:
        """Start tokenising in the order that a stream of this seed needs; later calls do nothing.

        Nothing is started where another process does it, or nothing is left to do.
        """
        if self._may_start and self._tokeniser is None and not self.complete:
            self._tokeniser = BackgroundTokeniser(replace(self.assignment, seed=seed))

    def wait_for(self, blocks: Sequence[int]) -> None:
        """Return when all of `blocks` are ready.

        Raises what the tokenising process failed with, wherever on the host it was started, and
        InfrastructureError where no block gets ready for half an hour.
        """
        said_s = time.monotonic()
        while missing := [block for block in blocks if self.rows[block] == UNKNOWN]:
            what = (
                f"block {missing[0]} is being tokenised ({self.num_ready} of {self.num_blocks} "
                f"are ready, in {self._store.folder})"
            )
            if time.monotonic() - said_s > REPORT_INTERVAL_S:
                logger.info("waiting: %s", what)
                said_s = time.monotonic()
            wait_until(self._has_news, what=what, deadline_s=WAIT_DEADLINE_S)

    def block(self, number: int) -> TokenBlock:
        """Content of a block that is ready."""
        return self._read(number)

    def close(self) -> None:
        """End the tokenising process, if this corpus started one."""
        if self._tokeniser is not None:
            self._tokeniser.close()

    def _has_news(self) -> bool:
        # First the failure, then the table: a block made ready before a failure still counts.
        failure = self._tokeniser.failure() if self._tokeniser is not None else None
        failure = failure or found_failure(self.assignment.failure_path)
        before = self.num_ready
        self._look()
        if failure is not None and self.num_ready == before:
            raise failure.error()
        return self.num_ready > before

    def _look(self) -> None:
        entries = self._table.read()
        self.rows: NDArray[np.int32] = entries["rows"].copy()
        self.num_ready = int(np.count_nonzero(self.rows != UNKNOWN))
        self._refused = int(entries["skipped"].clip(min=0).sum())


def packing_of(config: DataConfig) -> Packing:
    """The packing that `auto` stands for."""
    if config.packing == "auto":
        return "split" if config.kind == "pretrain" else "whole"
    return config.packing


def stream_fingerprint(
    config: DataConfig, packing: Packing, index: SourceIndex, tokenizer: Tokenizer
) -> str:
    """Name of everything that, with a seed, decides the stream of sequences."""
    return digest(
        _store_key(config, index, tokenizer), packing, config.seq_len, config.shuffle_blocks
    )


def _store_key(config: DataConfig, index: SourceIndex, tokenizer: Tokenizer) -> str:
    limits = (config.on_bad, config.max_document_bytes, config.block_bytes)
    source = (index.scan.fingerprint, index.format, index.field)
    return digest(VERSION, source, tokenizer.fingerprint, config.kind, limits)


def _assignment(
    config: DataConfig, packing: Packing, index: SourceIndex, tokenizer: Tokenizer
) -> Assignment:
    root = cache_root(config)
    kept = root / "tokenizers" / tokenizer.fingerprint
    if not (kept / "tokenizer.json").is_file():
        tokenizer.save(kept)
    store = make_folder(root / "tokens" / _store_key(config, index, tokenizer))
    source = config.source
    fields = {
        "source": source
        if source == "python_stdlib"
        else str(Path(source).expanduser().absolute()),
        "format": index.format,
        "kind": config.kind,
        "messages_field" if config.kind == "chat" else "text_field": index.field or "text",
        "seq_len": config.seq_len,
        "shuffle_blocks": config.shuffle_blocks,
        "on_bad": config.on_bad,
        "max_document_bytes": config.max_document_bytes,
        "block_bytes": config.block_bytes,
        "cache_dir": str(root),
    }
    return Assignment(
        config=fields,
        tokenizer=str(kept),
        store=str(store),
        fingerprint=index.scan.fingerprint,
        packing=packing,
        seed=0,
    )
