"""What the content of a document may be: a text, a question and its answer, or a conversation."""

import json
from dataclasses import dataclass
from typing import Any

ROLES = ("system", "developer", "user", "assistant", "tool")


class UnusableError(ValueError):
    """Why a document cannot be trained on; the text goes on after the document's name."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str


def parse_text(content: Any) -> str:
    """The text of a record. Raises UnusableError where it is none."""
    if not isinstance(content, str):
        raise UnusableError(f"has {type(content).__name__} where text should be")
    try:
        content.encode()
    except UnicodeEncodeError as error:
        raise UnusableError("has half of a surrogate pair, which is no character") from error
    return content


def parse_answered(content: Any) -> tuple[str, str]:
    """The question and the answer of a record: a list of two texts. Raises UnusableError."""
    if not isinstance(content, list) or len(content) != 2:
        raise UnusableError("has no list of two texts, a question and its answer")
    question, answer = content
    return parse_text(question), parse_text(answer)


def parse_messages(content: Any) -> list[Message]:
    """The messages of a record: a list of {role, content}, or the JSON text of one.

    Raises UnusableError where a role is unknown, a field is missing, a content is not text, or no
    assistant message is there to learn from.
    """
    if isinstance(content, str):
        try:
            content = json.loads(content)
        except ValueError as error:
            raise UnusableError(f"has messages that are not JSON ({error})") from error
    if not isinstance(content, list) or not content:
        raise UnusableError("has no list of messages")
    messages = [_message(number, value) for number, value in enumerate(content, 1)]
    if all(message.role != "assistant" for message in messages):
        raise UnusableError("has no assistant message, so nothing to learn from")
    return messages


def _message(number: int, value: Any) -> Message:
    if not isinstance(value, dict):
        raise UnusableError(f"has a message {number} that is not an object")
    for name in ("role", "content"):
        if name not in value:
            raise UnusableError(f"has a message {number} without {name!r}")
    role = value["role"]
    if role not in ROLES:
        raise UnusableError(f"has role {role!r} in message {number}; roles are {', '.join(ROLES)}")
    try:
        return Message(role, parse_text(value["content"]))
    except UnusableError as error:
        raise UnusableError(f"{error} (message {number})") from error
