"""Text from a model, token by token.

T tokens, V vocabulary.
"""

from collections.abc import Iterator
from dataclasses import replace
from itertools import takewhile

import numpy as np
import torch
from torch.distributed.tensor import DTensor

from trainer.errors import RecipeError
from trainer.model.decoder import Decoder
from trainer.rl.engine.blocks import block_bytes
from trainer.rl.engine.config import EngineConfig
from trainer.rl.engine.engine import Engine
from trainer.rl.engine.randomness import uniforms
from trainer.rl.engine.request import Request, Sampling
from trainer.rl.engine.sampling import draw, settings_of
from trainer.rl.generate import stream


def generate(
    model: Decoder,
    prompt_tokens: list[int],
    *,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
    eos_id: int | None,
    context: int,
) -> Iterator[int]:
    """Yield tokens that follow the prompt, until `eos_id` (not yielded) or a limit is reached.

    `temperature` 0 takes the likeliest token; otherwise tokens are drawn from the smallest set of
    likeliest ones that holds `top_p` of the probability (arXiv 1904.09751), a function of `seed`.
    Prompt and answer together are at most `context` tokens. With a sharded model every rank calls
    it with the same arguments and takes every token. A tensor-parallel one is not handled here:
    only `braid generate` calls this, in one process.

    Raises RecipeError for an empty prompt and for one that leaves no room for an answer.
    """
    if not prompt_tokens:
        raise RecipeError("the prompt has no tokens; give at least one character")
    if len(prompt_tokens) >= context:
        raise RecipeError(
            f"the prompt has {len(prompt_tokens)} tokens and the context holds {context}, which "
            "leaves no room for an answer; shorten the prompt"
        )
    if temperature < 0 or not 0 < top_p <= 1:
        raise RecipeError(
            f"temperature={temperature} must not be negative and top_p={top_p} must lie in (0, 1]"
        )
    request = Request(
        id="text",
        prompt=tuple(prompt_tokens),
        seeds=(seed % 2**63,),
        sampling=Sampling(
            max_new_tokens=min(max_new_tokens, context - len(prompt_tokens)),
            temperature=temperature,
            top_p=top_p,
            stop_ids=() if eos_id is None else (eos_id,),
        ),
    )
    whole = not any(isinstance(weight, DTensor) for weight in model.parameters())
    engine = (
        _engine(model, len(request.prompt) + request.sampling.max_new_tokens) if whole else None
    )
    tokens = _tokens(model, request) if engine is None else stream(engine, request)
    return takewhile(lambda token: token != eos_id, tokens)


def _engine(model: Decoder, total: int) -> Engine | None:
    """With room for one text of `total` tokens; None where keys do not stay as they are: dynamic
    scaling rotates earlier ones anew once the text outgrows the original context."""
    config = EngineConfig(max_sequences=1)
    element_bytes = next(model.parameters()).element_size()
    block = block_bytes(model.architecture, config.block_tokens, element_bytes)
    kv_bytes = -(-total // config.block_tokens) * block
    engine = Engine(model, replace(config, kv_bytes=kv_bytes))
    return engine if total <= engine.longest_tokens else None


def _tokens(model: Decoder, request: Request) -> Iterator[int]:
    """The same tokens, up to rounding, without anything kept from one to the next."""
    sampling = request.sampling
    tokens = list(request.prompt)
    for place in range(sampling.max_new_tokens):
        token = _next(model, tokens, sampling, request.seeds[0], place)
        tokens.append(token)
        yield token
        if token in sampling.stop_ids:
            return


# Gradients are switched off per call: around a `yield` it would leak into the caller.
@torch.no_grad()
def _next(model: Decoder, tokens: list[int], sampling: Sampling, seed: int, place: int) -> int:
    device = next(model.parameters()).device
    text_T = torch.tensor(tokens, device=device)
    positions_T = torch.arange(len(tokens), device=device)
    logits_1V = model.logits(text_T, positions_T, (len(tokens),), last_only=True)
    uniform_1 = torch.from_numpy(uniforms(np.array([seed]), np.array([place]))).to(device)
    return draw(logits_1V, uniform_1, settings_of([sampling], device)).tokens[0]
