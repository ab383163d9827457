"""Whatever a worker sends becomes rewards or a fault."""

import json

import pytest

from cluster.rewards.protocol import decode_object, encode_request, result_of, shortened
from trainer.rl.rewards.outcome import FaultKind, RewardRequest

REQUEST = RewardRequest(number=7, prompt="?", completions=["a", "b"], reference={"answer": "é"})


def test_a_request_is_one_line_of_json():
    line = encode_request(REQUEST)
    assert line.count(b"\n") == 1
    assert decode_object(line) == {
        "number": 7,
        "prompt": "?",
        "completions": ["a", "b"],
        "reference": {"answer": "é"},
    }


def test_good_rewards_are_numbers():
    result = result_of(b'{"number": 7, "rewards": [1, 0.5]}', REQUEST, 0.25)
    assert (result.number, result.rewards, result.fault) == (7, (1.0, 0.5), None)
    assert result.seconds == 0.25


@pytest.mark.parametrize(
    ("rewards", "kind", "says"),
    [
        ("[1]", FaultKind.WRONG_COUNT, "it returned 1 rewards for 2 samples"),
        ("[1, 2, 3]", FaultKind.WRONG_COUNT, "it returned 3 rewards for 2 samples"),
        ("[1, NaN]", FaultKind.NOT_FINITE, "reward 1 is nan"),
        ("[-Infinity, 1]", FaultKind.NOT_FINITE, "reward 0 is -inf"),
        (f"[1, {'9' * 400}]", FaultKind.NOT_FINITE, "reward 1 is an integer beyond any float"),
        ('[1, "2"]', FaultKind.NO_NUMBER, "reward 1 is '2'"),
        ("[null, 1]", FaultKind.NO_NUMBER, "reward 0 is None"),
        ("3", FaultKind.NO_NUMBER, "it returned int, not a list"),
    ],
)
def test_bad_rewards_are_faults_that_name_the_place(rewards, kind, says):
    result = result_of(f'{{"number": 7, "rewards": {rewards}}}'.encode(), REQUEST, 0.0)
    assert result.rewards is None
    assert (result.fault.kind, result.fault.reason) == (kind, says)


@pytest.mark.parametrize(
    "line", [b"", b"\xff\xfe", b"[1, 2]", b'{"number": 8, "rewards": [1, 1]}', b"[" * 100_000]
)
def test_anything_else_is_garbled(line):
    assert result_of(line, REQUEST, 0.0).fault.kind is FaultKind.GARBLED


def test_what_was_raised_is_passed_on_shortened():
    reply = {"number": 7, "kind": "raised", "reason": "x" * 9999 + " the end"}
    fault = result_of(json.dumps(reply).encode(), REQUEST, 0.0).fault
    assert fault.kind is FaultKind.RAISED
    assert fault.reason.endswith("the end")
    assert len(fault.reason) < 600
    assert result_of(b'{"number": 7}', REQUEST, 0.0).fault.reason == "no reason given"
    assert shortened(" short ") == "short"
