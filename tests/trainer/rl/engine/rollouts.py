"""A small rollout engine, requests for it, and what an uncached forward says of its answers."""

from dataclasses import replace

import torch

from tests.trainer.model.generating import PLAIN
from trainer.rl.engine.config import EngineConfig
from trainer.rl.engine.engine import Engine
from trainer.rl.engine.request import Request, Sampling

CONFIG = EngineConfig(block_tokens=4, max_sequences=6, forward_tokens=9, kv_bytes=2**18)
SAMPLING = Sampling(max_new_tokens=14)


def finish(engine, max_steps=500):
    answers = []
    for _ in range(max_steps):
        if engine.idle:
            break
        answers += engine.step().finished
    assert engine.idle
    return {(answer.request_id, answer.sample): answer for answer in answers}


def requests(sampling=SAMPLING):
    """Groups with prompts of less than a block to several chunks."""
    generator = torch.Generator().manual_seed(3)
    vocabulary = PLAIN.vocab_size
    lengths, samples = (3, 1, 23, 8, 11), (3, 2, 1, 4, 1)
    return [
        Request(
            id=f"r{i}",
            prompt=tuple(torch.randint(0, vocabulary, (length,), generator=generator).tolist()),
            seeds=tuple(range(10 * i, 10 * i + count)),
            sampling=replace(sampling, max_new_tokens=sampling.max_new_tokens - i),
        )
        for i, (length, count) in enumerate(zip(lengths, samples, strict=True))
    ]


def answers_of(model, config=CONFIG, asked=None):
    engine = Engine(model, config)
    for request in requests() if asked is None else asked:
        engine.submit(request)
    return finish(engine), engine


def answers_alone(model, asked=None):
    found = {}
    for request in requests() if asked is None else asked:
        for sample, seed in enumerate(request.seeds):
            engine = Engine(model, CONFIG)
            engine.submit(replace(request, seeds=(seed,), started=()))
            found[request.id, sample] = finish(engine)[request.id, 0]
    return found


def tokens(answers):
    return {key: answer.tokens for key, answer in answers.items()}


@torch.no_grad()
def whole_logprobs(model, request, answer):
    """Log-probabilities of the answer by a forward without any cache."""
    text = torch.tensor([*request.prompt, *answer.tokens])
    logits = model.logits(text, torch.arange(len(text)), (len(text),))
    begin = len(text) - len(answer.logprobs)
    logprobs = logits[begin - 1 : -1].log_softmax(dim=1)
    return logprobs.gather(1, text[begin:, None]).squeeze(1)
