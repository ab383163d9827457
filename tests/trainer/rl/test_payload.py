"""The guarantees of trainer/rl/payload.py."""

import json

import numpy as np
import pytest

from trainer.rl.payload import AnswerRecord, PromptRecord


def answer(tokens=6, routing=True, **changes):
    random = np.random.default_rng(tokens)
    values = {
        "prompt_tokens": 2,
        "tokens": random.integers(0, 99, tokens, np.int32),
        "loss_mask": np.array([0, 0] + [1] * (tokens - 2), np.int8),
        "log_probs": random.normal(size=tokens).astype(np.float32),
        "model_log_probs": random.normal(size=tokens).astype(np.float32),
        "kept_log_mass": random.normal(size=tokens).astype(np.float32),
        "versions": np.array([-1, -1] + [3] * (tokens - 2), np.int32),
        "reference_log_probs": random.normal(size=tokens).astype(np.float32),
        "routing": random.integers(0, 9, (tokens - 1, 3, 2), np.int16) if routing else None,
        "text": "5 ½",
        "final": None,
        "score": 0.25,
        "ended": True,
    }
    return AnswerRecord(**values | changes)


def prompt(*answers):
    return PromptRecord(prompt="2+3=", reference={"answer": "5"}, answers=answers)


def test_what_is_read_is_bitwise_what_was_written_also_after_json():
    written = prompt(answer(), answer(9, routing=False, reference_log_probs=None, cut=True))
    read = PromptRecord.from_plain(json.loads(json.dumps(written.to_plain())))
    assert (read.prompt, read.reference) == (written.prompt, written.reference)
    for one, other in zip(written.answers, read.answers, strict=True):
        for name, value in vars(one).items():
            np.testing.assert_array_equal(vars(other)[name], value)
            if isinstance(value, np.ndarray):
                assert vars(other)[name].dtype == value.dtype


@pytest.mark.parametrize("spoil", ["lacks", "garbled", "short", "no answers"])
def test_what_is_damaged_or_lacks_something_is_refused(spoil):
    plain = prompt(answer()).to_plain()
    if spoil == "lacks":
        del plain["answers"][0]["versions"]
    elif spoil == "garbled":
        plain["answers"][0]["tokens"] = "?" + plain["answers"][0]["tokens"]
    elif spoil == "short":
        plain["answers"][0]["tokens"] = plain["answers"][0]["tokens"][:8]
    else:
        del plain["answers"]
    with pytest.raises(ValueError, match="have it answered again"):
        PromptRecord.from_plain(plain)


def test_versions_of_sampled_tokens_are_told_to_the_ledger():
    versions = np.array([-1, -1, 4, 4, 6, 7], np.int32)
    kept = prompt(answer(), answer(versions=versions)).kept()
    assert kept is not None
    assert (kept.oldest, kept.newest) == (3, 7)
    nothing = answer(2, loss_mask=np.zeros(2, np.int8), versions=np.full(2, -1, np.int32))
    assert prompt(nothing).kept() is None


def test_the_longest_turn_is_found_between_observations():
    masks = np.array([0, 1, 1, 0, 1, 1], np.int8)
    assert answer(loss_mask=masks).longest_turn == 2
    assert answer(loss_mask=masks).response_tokens == 4
    assert answer(loss_mask=np.zeros(6, np.int8)).longest_turn == 0
