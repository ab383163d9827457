"""Documents of a block as tokens.

A document is its tokens with the end token, and what the tokenizer puts in front; one that is
empty, and so has no pair of a token and its next, is left out.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainer.data.chat import ChatEncoder
from trainer.data.content import UnusableError, parse_answered, parse_messages, parse_text
from trainer.data.documents import BadDocument, Document, Place
from trainer.data.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Encoded:
    """One document. `mask` says which tokens are targets; None means all but the first."""

    place: Place
    tokens: NDArray[np.int64]
    mask: NDArray[np.bool_] | None


@dataclass(frozen=True, slots=True)
class Refused:
    """A document that cannot be used."""

    place: Place
    reason: str


class DocumentEncoder:
    """Encodes what a `DocumentReader` reads, for one kind of training."""

    def __init__(self, tokenizer: Tokenizer, kind: str) -> None:
        self._tokenizer = tokenizer
        self._kind = kind
        self._chat = ChatEncoder(tokenizer) if kind == "chat" else None
        self._before = np.array(tokenizer.prefix_ids, dtype=np.int64)
        self._after = np.array([tokenizer.eos_id], dtype=np.int64)

    def encode(self, documents: Iterable[Document | BadDocument]) -> Iterator[Encoded | Refused]:
        """The documents in the same order, empty ones left out."""
        if self._kind != "pretrain":
            for document in documents:
                encoded = self._masked(document)
                if isinstance(encoded, Refused) or len(encoded.tokens) > 1:
                    yield encoded
            return
        texts: list[tuple[Place, str]] = []
        refused: dict[int, Refused] = {}
        for document in documents:
            try:
                texts.append((document.place, _text_of(document)))
            except UnusableError as error:
                refused[len(texts) + len(refused)] = Refused(document.place, str(error))
        yield from self._in_order(texts, refused)

    def _in_order(
        self, texts: list[tuple[Place, str]], refused: dict[int, Refused]
    ) -> Iterator[Encoded | Refused]:
        # All texts at once: the tokenizer spreads them over the cores.
        encoded = zip(texts, self._tokenizer.encode_batch([t for _, t in texts]), strict=True)
        for number in range(len(texts) + len(refused)):
            if number in refused:
                yield refused[number]
                continue
            (place, text), ids = next(encoded)
            if text:
                yield Encoded(place, np.concatenate((self._before, ids, self._after)), None)

    def _masked(self, document: Document | BadDocument) -> Encoded | Refused:
        if isinstance(document, BadDocument):
            return Refused(document.place, document.reason)
        try:
            if self._chat is None:
                tokens, mask = self._answered(*parse_answered(document.content))
            else:
                tokens, mask = self._chat.encode(parse_messages(document.content))
        except UnusableError as error:
            return Refused(document.place, str(error))
        return Encoded(document.place, tokens, mask)

    def _answered(self, question: str, answer: str) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        # Apart from each other: a policy that is asked reads the tokens of the question alone.
        asked, answered = self._tokenizer.encode_batch([question, answer])
        tokens = np.concatenate((self._before, asked, answered, self._after))
        return tokens, np.arange(len(tokens)) >= len(self._before) + len(asked)


def _text_of(document: Document | BadDocument) -> str:
    if isinstance(document, BadDocument):
        raise UnusableError(document.reason)
    return parse_text(document.content)
