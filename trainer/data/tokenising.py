"""Fill a token store, block by block: the work of the tokenising process.

Several processes, of several hosts if they share the cache, may fill the same store: each claims
the block it works on and leaves those alone that another has claimed.
"""

import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trainer.data.cache import claim, make_folder
from trainer.data.config import DataConfig
from trainer.data.documents import DocumentReader, Place
from trainer.data.encoding import DocumentEncoder, Encoded
from trainer.data.index import SourceIndex, open_index
from trainer.data.order import block_order
from trainer.data.packing import Packing, count_rows, too_long
from trainer.data.rows import UNKNOWN
from trainer.data.store import RowTable, TokenBlock, TokenStore
from trainer.data.tokenizer import Tokenizer
from trainer.errors import DataError

logger = logging.getLogger("braid")

NARROW_VOCABULARY = 1 << 16
POLL_S = 0.1
REFUSALS_NAMED = 20


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """What a tokenising process is told; plain values."""

    config: dict[str, Any]
    """The fields of DataConfig that matter here."""

    tokenizer: str
    """Folder of the tokenizer."""

    store: str
    """Folder of the store."""

    fingerprint: str
    """What the source was when the store was opened."""

    packing: Packing
    seed: int
    """Of the stream: blocks are done in the order of its first epoch."""

    @property
    def failure_path(self) -> Path:
        """Where a failure is left for others that read this store with this packing."""
        return Path(self.store) / f"failure-{self.packing}-{self.config['seq_len']}.json"

    def encode(self) -> str:
        """One JSON object."""
        return json.dumps(asdict(self))

    @classmethod
    def decode(cls, text: str) -> "Assignment":
        """Read `encode`'s object."""
        return cls(**json.loads(text))

    def data_config(self) -> DataConfig:
        """The data section."""
        return DataConfig(**self.config)


class Filler:
    """Tokenises the blocks of one store."""

    def __init__(self, assignment: Assignment) -> None:
        config = assignment.data_config()
        self._config = config
        self._packing: Packing = assignment.packing
        self._index = _unchanged(open_index(config), assignment.fingerprint)
        tokenizer = Tokenizer.load(assignment.tokenizer)
        self._wide = tokenizer.vocab_size > NARROW_VOCABULARY
        self._encoder = DocumentEncoder(tokenizer, config.kind)
        self._reader = DocumentReader(self._index, max_document_bytes=config.max_document_bytes)
        self._store = TokenStore(Path(assignment.store), self._index.blocks.count)
        self._table = RowTable(self._store, config.seq_len, assignment.packing)
        self._refusals = 0
        self._order = block_order(self._store.num_blocks, seed=assignment.seed, epoch=0)

    def fill(
        self, go_on: Callable[[], bool], *, on_first_group: Callable[[], object] = lambda: None
    ) -> None:
        """Do every block that is not done, asking `go_on` before each.

        `on_first_group` is called when as many were done as a stream needs to begin. Raises
        DataError where a document cannot be used and the recipe does not skip such.
        """
        claims = make_folder(self._store.folder / "claims")
        missing = self._missing(self._order.tolist())
        done_in_all = 0
        while missing and go_on():
            done_before = done_in_all
            for block in missing:
                if go_on() and self._claim_and_do(block, claims):
                    done_in_all += 1
                    if done_in_all == self._config.shuffle_blocks:
                        on_first_group()
            missing = self._missing(missing)
            if done_in_all == done_before:
                time.sleep(POLL_S)

    def _missing(self, blocks: Sequence[int]) -> list[int]:
        rows = self._table.read()["rows"]
        return [block for block in blocks if rows[block] == UNKNOWN]

    def _claim_and_do(self, block: int, claims: Path) -> bool:
        path = claims / str(block)
        with claim(path) as mine:
            if mine:
                self._do(block)
                path.unlink(missing_ok=True)
        return mine

    def _do(self, block: int) -> None:
        if not self._store.has(block):
            self._tokenise(block)
        tokens = self._store.read(block)
        lengths_D = tokens.lengths_D
        long = too_long(lengths_D, self._config.seq_len, self._packing)
        for document in long.tolist():
            self._refuse(self._too_long(tokens, document))
        rows = count_rows(lengths_D, self._config.seq_len, self._packing)
        self._table.write(block, rows=rows, skipped=tokens.refused + len(long))

    def _tokenise(self, block: int) -> None:
        encoded: list[Encoded] = []
        refused = 0
        for document in self._encoder.encode(self._reader.read(block)):
            if isinstance(document, Encoded):
                encoded.append(document)
                continue
            self._refuse(self._reader.complaint(document.place, document.reason))
            refused += 1
        self._store.write(block, encoded, refused=refused, wide=self._wide)

    def _refuse(self, complaint: str) -> None:
        if self._config.on_bad == "error":
            raise DataError(complaint)
        self._refusals += 1
        if self._refusals <= REFUSALS_NAMED:
            logger.warning("skipped: %s", complaint)
        if self._refusals == REFUSALS_NAMED:
            logger.warning("further documents are skipped without being named; all are counted")

    def _too_long(self, tokens: TokenBlock, document: int) -> str:
        file, line = tokens.places[document].tolist()
        return (
            f"{self._reader.name_of(Place(file, line))} has {int(tokens.lengths_D[document]):,} "
            f"tokens, more than data.seq_len={self._config.seq_len}; raise it, set data.packing="
            "split to cut such documents, or data.on_bad=skip to leave them out"
        )


def _unchanged(index: SourceIndex, fingerprint: str) -> SourceIndex:
    if index.scan.fingerprint != fingerprint:
        raise DataError(
            f"data.source={index.description} changed while the run started; start it again"
        )
    return index
