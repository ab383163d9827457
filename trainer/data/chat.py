"""Conversations as tokens, and which of them are trained on.

Invariants, each asserted in tests/trainer/data/test_chat.py:
- targets are the tokens of assistant messages and the token with which the template ends each;
- template and messages are tokenised piece by piece, so the tokens before a message do not depend
  on it: at inference the model sees exactly the prompt tokens it was trained on;
- a special token spelled out in a message stays plain text.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from trainer.data.content import Message, UnusableError
from trainer.data.template import CHATML, ChatTemplate, Piece
from trainer.data.tokenizer import Tokenizer


class ChatEncoder:
    """Turns conversations into tokens with the tokenizer's template, or ChatML if it has none."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._special_ids = np.array(sorted(tokenizer.special_ids), dtype=np.int64)
        self._template = ChatTemplate(tokenizer.chat_template or CHATML, tokenizer.special_texts)

    def pieces(self, messages: Sequence[Message]) -> list[Piece]:
        """The conversation cut into template text and messages. Raises UnusableError."""
        return self._template.pieces(messages)

    def encode(self, messages: Sequence[Message]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Tokens, and whether each is a target. Both end with the last target.

        Raises UnusableError where the template does not take the conversation, or nothing of it
        is a target.
        """
        pieces = self.pieces(messages)
        tokens = self._tokens_of(pieces)
        targets = [np.zeros(len(ids), dtype=bool) for ids in tokens]
        ends_with: list[int] = []
        for number, piece in enumerate(pieces):
            if piece.message is None or messages[piece.message].role != "assistant":
                continue
            targets[number][:] = True
            after = slice(number + 1, number + 2)
            closed = self._mark_end(pieces[after], tokens[after], targets[after])
            ends_with = [] if closed else [self._tokenizer.eos_id]
        joined, mask = np.concatenate(tokens), np.concatenate(targets)
        if not mask.any():
            raise UnusableError(
                "has nothing to train on: every assistant message is empty, and the tokenizer's "
                "chat template ends them with no token of its own"
            )
        stop = int(np.flatnonzero(mask)[-1]) + 1
        # A template without an end token of its own: the model must still learn to stop.
        joined = np.append(joined[:stop], ends_with).astype(np.int64)
        return joined, np.append(mask[:stop], [True] * len(ends_with)).astype(bool)

    def _tokens_of(self, pieces: Sequence[Piece]) -> list[NDArray[np.int64]]:
        contents = iter(
            self._tokenizer.encode_batch([p.text for p in pieces if p.message is not None])
        )
        controls = iter(
            self._tokenizer.encode_control([p.text for p in pieces if p.message is None])
        )
        return [next(controls if p.message is None else contents) for p in pieces]

    def _mark_end(
        self,
        pieces: Sequence[Piece],
        tokens: Sequence[NDArray[np.int64]],
        targets: Sequence[NDArray[np.bool_]],
    ) -> bool:
        """Mark the special token that follows a message, space before it included."""
        if not pieces or pieces[0].message is not None:
            return False
        special = np.flatnonzero(np.isin(tokens[0], self._special_ids))
        if not len(special):
            return False
        end = int(special[0])
        between = self._tokenizer.decode(tokens[0][:end].tolist(), skip_special=False)
        if between.strip():
            return False
        targets[0][: end + 1] = True
        return True
