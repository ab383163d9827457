from dataclasses import replace

import pytest

from trainer.model.config import Architecture
from trainer.model.decoder import Decoder
from trainer.model.init import init_weights
from trainer.rl.engine.config import EngineConfig
from trainer.rl.engine.engine import Engine
from trainer.rl.engine.request import Request, Sampling
from trainer.rl.generate import answers, stream

REQUEST = Request(id="a", prompt=(3, 4, 5), seeds=(7,), sampling=Sampling(max_new_tokens=9))


def make_engine():
    model = Decoder(Architecture(vocab_size=31, hidden_size=16, num_layers=1, init_std=0.3))
    init_weights(model, 0)
    return Engine(model, EngineConfig(block_tokens=4, kv_bytes=2**16))


def test_streamed_tokens_are_those_of_the_answer():
    (answer,) = answers(make_engine(), [REQUEST])
    assert list(stream(make_engine(), REQUEST)) == answer.tokens
    assert len(answer.tokens) == 9


def test_answers_come_as_they_finish():
    short = replace(REQUEST, id="short", sampling=Sampling(max_new_tokens=2))
    found = [answer.request_id for answer in answers(make_engine(), [REQUEST, short])]
    assert found == ["short", "a"]


def test_a_stream_that_is_left_gives_its_request_up():
    engine = make_engine()
    tokens = stream(engine, REQUEST)
    next(tokens)
    assert not engine.idle
    tokens.close()
    assert engine.idle


def test_several_answers_cannot_be_streamed():
    with pytest.raises(ValueError, match="wants 2 answers"):
        next(stream(make_engine(), replace(REQUEST, seeds=(1, 2))))
