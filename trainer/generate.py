"""Text from a model, token by token.

T tokens, V vocabulary.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from trainer.errors import RecipeError
from trainer.model.cache import KvCache
from trainer.model.config import Architecture
from trainer.model.decoder import Decoder


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
    it with the same arguments and takes every token.

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
    total = min(len(prompt_tokens) + max_new_tokens, context)
    return _tokens(model, list(prompt_tokens), total, temperature, top_p, seed, eos_id)


def _tokens(
    model: Decoder,
    tokens: list[int],
    total: int,
    temperature: float,
    top_p: float,
    seed: int,
    eos_id: int | None,
) -> Iterator[int]:
    generator = torch.Generator().manual_seed(seed)
    cache = KvCache(model.architecture, total) if _can_cache(model.architecture, total) else None
    done = 0
    while len(tokens) < total:
        logits_V = _next_logits(model, tokens, done, cache)
        done = len(tokens) if cache is not None else 0
        token = pick(logits_V, temperature=temperature, top_p=top_p, generator=generator)
        if token == eos_id:
            return
        tokens.append(token)
        yield token


def _can_cache(architecture: Architecture, total: int) -> bool:
    scaling = architecture.rope_scaling
    # Dynamic scaling rotates earlier keys anew once the text outgrows the original context.
    moves = scaling is not None and scaling.kind == "dynamic"
    return not moves or scaling is None or total <= scaling.original_context_tokens


# Gradients are switched off per call: around a `yield` it would leak into the caller.
@torch.no_grad()
def _next_logits(model: Decoder, tokens: list[int], done: int, cache: KvCache | None) -> Tensor:
    device = next(model.parameters()).device
    new_T = torch.tensor(tokens[done:], device=device)
    positions_T = torch.arange(done, len(tokens), device=device)
    ends = (len(tokens) - done,)
    return model.logits(new_T, positions_T, ends, cache, last_only=True)[0].float().cpu()


def pick(logits_V: Tensor, *, temperature: float, top_p: float, generator: torch.Generator) -> int:
    """One token id; the generator is on the logits' device."""
    if temperature == 0.0:
        return int(logits_V.argmax())
    sorted_V, ids_V = torch.sort((logits_V / temperature).softmax(dim=-1), descending=True)
    # A token stays while those before it hold less than top_p; the likeliest one always does.
    before_V = sorted_V.cumsum(dim=-1) - sorted_V
    kept_V = sorted_V * (before_V < top_p)
    return int(ids_V[torch.multinomial(kept_V, 1, generator=generator)])
