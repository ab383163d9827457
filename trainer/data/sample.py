"""The part of the data that a tokenizer is trained on: the same for the same data."""

from collections.abc import Iterator

import numpy as np

from trainer.data.content import UnusableError, parse_answered, parse_messages, parse_text
from trainer.data.documents import BadDocument, Document, DocumentReader
from trainer.errors import DataError

SAMPLE_VERSION = 1
"""Part of a trained tokenizer's key; raised when the choice below changes."""

SAMPLE_CHARACTERS = 4 * 1024 * 1024
SAMPLE_BLOCKS = 64


def sample_texts(
    reader: DocumentReader, num_blocks: int, *, kind: str, skip_bad: bool
) -> list[str]:
    """About 4 M characters from up to 64 evenly spaced blocks, as much from each.

    Of a block every k-th document is taken, so that no folder or topic stands for all. Raises
    DataError at a bad document unless `skip_bad`, and where there is no text at all.
    """
    blocks = np.unique(np.linspace(0, num_blocks - 1, SAMPLE_BLOCKS).astype(int)).tolist()
    share = SAMPLE_CHARACTERS // len(blocks)
    texts: list[str] = []
    for block in blocks:
        texts += _spread(list(_texts(reader, block, kind, skip_bad)), share)
    if not texts:
        raise DataError(
            "no usable document was found to train a tokenizer on; give other data, or name a "
            "tokenizer in data.tokenizer"
        )
    return texts


def _spread(texts: list[str], share: int) -> list[str]:
    stride = max(sum(map(len, texts)) // share, 1)
    # The text itself is cut as well: one large document must not crowd out the rest.
    return [text[:share] for text in texts[::stride] if text]


def _texts(reader: DocumentReader, block: int, kind: str, skip_bad: bool) -> Iterator[str]:
    for document in reader.read(block):
        try:
            yield _text_of(document, kind)
        except UnusableError as error:
            if not skip_bad:
                raise DataError(reader.complaint(document.place, error)) from error


def _text_of(document: Document | BadDocument, kind: str) -> str:
    if isinstance(document, BadDocument):
        raise UnusableError(document.reason)
    if kind == "chat":
        return "\n".join(message.content for message in parse_messages(document.content))
    if kind == "answers":
        return "\n".join(parse_answered(document.content))
    return parse_text(document.content)
