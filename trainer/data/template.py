"""Chat templates: a conversation as pieces of text, each either the template's or a message's.

The template is rendered once, with a mark in place of every message's content, and the result is
cut at the marks. So it is known exactly which characters are whose, whatever the template does
around them, and a message cannot pass for part of the template. Templates run in Jinja's
immutable sandbox: they see the messages and the special tokens, and can change nothing. They are
given no clock, since the same data must give the same tokens on another day.

What a template does to the content itself (trimming, splitting) does not happen: messages are
trained on as they stand.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from trainer.data.content import Message, UnusableError
from trainer.errors import DataError

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

# Private-use characters: no template compares with them, and no tokenizer trims them.
OPEN, CLOSE = "\ue0f0", "\ue0f1"


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of the rendered conversation."""

    text: str
    message: int | None
    """The message whose content this is; None for the template's own text."""


class ChatTemplate:
    """A compiled template. Raises DataError where it is not Jinja."""

    def __init__(self, text: str, special_texts: Mapping[str, str]) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=["jinja2.ext.loopcontrols"],
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _refuse
        self._special_texts = dict(special_texts)
        try:
            self._template = environment.from_string(_without_generation_tags(text))
        except TemplateSyntaxError as error:
            raise DataError(
                f"the tokenizer's chat template is not valid (line {error.lineno}: "
                f"{error.message}); correct chat_template in its tokenizer_config.json"
            ) from error

    def pieces(self, messages: Sequence[Message]) -> list[Piece]:
        """The rendered conversation in order; every message is exactly one piece.

        Raises UnusableError where the template refuses the conversation or leaves one out.
        """
        marks = [f"{OPEN}{number}{CLOSE}" for number in range(len(messages))]
        text = self._render(messages, marks)
        pieces: list[Piece] = []
        for number, mark in enumerate(marks):
            before, found, text = text.partition(mark)
            if not found or mark in text:
                raise UnusableError(
                    f"has a message {number + 1} ({messages[number].role}) that the tokenizer's "
                    "chat template leaves out, repeats or moves"
                )
            pieces += [Piece(before, None), Piece(messages[number].content, number)]
        pieces.append(Piece(text, None))
        return [piece for piece in pieces if piece.text or piece.message is not None]

    def _render(self, messages: Sequence[Message], marks: Sequence[str]) -> str:
        turns = [
            {"role": message.role, "content": mark}
            for message, mark in zip(messages, marks, strict=True)
        ]
        try:
            return self._template.render(
                messages=turns, add_generation_prompt=False, **self._special_texts
            )
        except (TemplateError, TypeError, ValueError) as error:
            raise UnusableError(f"is refused by the tokenizer's chat template ({error})") from error


def _without_generation_tags(text: str) -> str:
    # Some templates mark assistant text with a tag of transformers' own; the marks do that here.
    text = re.sub(r"(\{%[-+]?\s*)generation(\s*[-+]?%\})", r"\1if true\2", text)
    return re.sub(r"(\{%[-+]?\s*)endgeneration(\s*[-+]?%\})", r"\1endif\2", text)


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _refuse(reason: str) -> None:
    raise TemplateError(reason)
