import json

import pytest

from trainer.data.content import (
    Message,
    UnusableError,
    parse_answered,
    parse_messages,
    parse_text,
)

GOOD = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "extra": 1}]


def test_messages_are_read_from_a_list_or_its_json():
    expected = [Message("user", "a"), Message("assistant", "b")]
    assert parse_messages(GOOD) == expected
    assert parse_messages(json.dumps(GOOD)) == expected


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "has no list of messages"),
        ([], "has no list of messages"),
        ("[", "has messages that are not JSON"),
        ([GOOD[0]], "has no assistant message, so nothing to learn from"),
        ([*GOOD, "hi"], "has a message 3 that is not an object"),
        ([{"role": "user"}], "has a message 1 without 'content'"),
        ([{"content": "x"}], "has a message 1 without 'role'"),
        ([{"role": "robot", "content": "x"}], "has role 'robot' in message 1; roles are system"),
        ([{"role": "user", "content": ["x"]}], r"has list where text should be \(message 1\)"),
    ],
)
def test_what_is_no_conversation_is_named(content, reason):
    with pytest.raises(UnusableError, match=reason):
        parse_messages(content)


def test_a_question_and_its_answer_are_a_list_of_two_texts():
    assert parse_answered(["1+2=", "3"]) == ("1+2=", "3")
    for bad in (None, "1+2=3", [], ["1+2="], ["a", "b", "c"]):
        with pytest.raises(UnusableError, match="has no list of two texts"):
            parse_answered(bad)
    with pytest.raises(UnusableError, match="has int where text"):
        parse_answered(["1+2=", 3])


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "has NoneType where text"), (3, "has int where text"), ("\ud800", "surrogate pair")],
)
def test_what_is_no_text_is_named(content, reason):
    with pytest.raises(UnusableError, match=reason):
        parse_text(content)
    assert parse_text("ä\0 \U0001f600") == "ä\0 \U0001f600"
