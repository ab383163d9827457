"""Rollout engine against `transformers.generate`: new tokens per second, one thread.

Same shape of model, same prompts, tokens drawn at temperature 1 from the whole vocabulary.

- distinct: every prompt once, all answers of equal length;
- groups: every prompt `group` times, as in group-relative methods;
- spread: lengths from a tenth of `new` to `new`, evenly. Static batching fills the batch, waits for
  its longest answer and fills it again; transformers computes ended rows on, the engine does not.

Tokens beyond the wanted length of an answer count as none. Times are of one thread, wall clock.
"""

import statistics
import time
from collections.abc import Callable

import torch
from harness import Result, options
from transformers import LlamaConfig, LlamaForCausalLM

from trainer.model.config import Architecture
from trainer.model.decoder import Decoder
from trainer.model.init import init_weights
from trainer.rl.engine.config import EngineConfig
from trainer.rl.engine.engine import Engine
from trainer.rl.engine.request import Request, Sampling

Prompts = list[tuple[int, ...]]


class Ours:
    """The engine, made once as in a rollout worker."""

    def __init__(self, architecture: Architecture, batch: int, forward_tokens: int) -> None:
        model = Decoder(architecture)
        init_weights(model, 0)
        config = EngineConfig(
            max_sequences=batch, forward_tokens=max(batch, forward_tokens), kv_bytes=2**28
        )
        self._engine = Engine(model, config)
        self._requests = 0

    def run(self, prompts: Prompts, lengths: list[int]) -> float:
        """Seconds; neighbours with the same prompt and length are one group."""
        begin = time.perf_counter()
        at = 0
        while at < len(prompts):
            end = at + 1
            while end < len(prompts) and (prompts[end], lengths[end]) == (prompts[at], lengths[at]):
                end += 1
            self._submit(prompts[at], end - at, lengths[at])
            at = end
        while not self._engine.idle:
            self._engine.step()
        return time.perf_counter() - begin

    def run_static(self, prompts: Prompts, lengths: list[int], batch: int) -> float:
        """Seconds, a batch after the other."""
        return sum(
            self.run(prompts[at : at + batch], lengths[at : at + batch])
            for at in range(0, len(prompts), batch)
        )

    def _submit(self, prompt: tuple[int, ...], answers: int, length: int) -> None:
        self._engine.submit(
            Request(
                id=str(self._requests),
                prompt=prompt,
                seeds=tuple(range(self._requests, self._requests + answers)),
                sampling=Sampling(max_new_tokens=length),
            )
        )
        self._requests += answers


class Transformers:
    """`generate` of a Llama of the same shape."""

    def __init__(self, a: Architecture) -> None:
        config = LlamaConfig(
            vocab_size=a.vocab_size,
            hidden_size=a.hidden_size,
            num_hidden_layers=a.num_layers,
            num_attention_heads=a.num_heads,
            num_key_value_heads=a.num_kv_heads,
            intermediate_size=a.intermediate_size,
            max_position_embeddings=a.max_context_tokens,
        )
        self._model = LlamaForCausalLM(config).eval()

    @torch.inference_mode()
    def run(self, prompts: Prompts, lengths: list[int], batch: int) -> float:
        """Seconds, a batch after the other, each to its longest answer."""
        begin = time.perf_counter()
        for at in range(0, len(prompts), batch):
            tokens = torch.tensor(prompts[at : at + batch])
            longest = max(lengths[at : at + batch])
            self._model.generate(
                tokens,
                attention_mask=torch.ones_like(tokens),
                do_sample=True,
                top_k=0,
                max_new_tokens=longest,
                min_new_tokens=longest,
                pad_token_id=0,
                eos_token_id=1,
            )
        return time.perf_counter() - begin


def main() -> None:
    """Measure alternately and show."""
    given = options(
        __doc__,
        rounds=5,
        batch=32,
        group=8,
        prompt=32,
        new=64,
        waves=6,
        vocab=1024,
        hidden=256,
        layers=4,
        kv_heads=2,
        forward_tokens=256,
    )
    torch.set_num_threads(1)
    architecture = Architecture(
        vocab_size=given.vocab,
        hidden_size=given.hidden,
        num_layers=given.layers,
        num_heads=4,
        num_kv_heads=given.kv_heads,
        intermediate_size=given.hidden * 43 // 16,
    )
    ours = Ours(architecture, given.batch, given.forward_tokens)
    theirs = Transformers(architecture)
    generator = torch.Generator().manual_seed(0)

    def prompts(count: int, repeats: int) -> Prompts:
        made = torch.randint(3, given.vocab, (count, given.prompt), generator=generator).tolist()
        return [tuple(prompt) for prompt in made for _ in range(repeats)]

    distinct = prompts(given.batch, 1)
    groups = prompts(given.batch // given.group, given.group)
    equal = [given.new] * given.batch
    many = prompts(given.batch * given.waves, 1)
    shortest = max(1, given.new // 10)
    lengths = torch.linspace(shortest, given.new, len(many)).long()
    spread = lengths[torch.randperm(len(many), generator=generator)].tolist()
    runs: dict[str, tuple[int, Callable[[], float]]] = {
        "distinct": (sum(equal), lambda: ours.run(distinct, equal)),
        "distinct transformers": (sum(equal), lambda: theirs.run(distinct, equal, given.batch)),
        "groups": (sum(equal), lambda: ours.run(groups, equal)),
        "groups transformers": (sum(equal), lambda: theirs.run(groups, equal, given.batch)),
        "spread": (sum(spread), lambda: ours.run(many, spread)),
        "spread static": (sum(spread), lambda: ours.run_static(many, spread, given.batch)),
        "spread transformers": (sum(spread), lambda: theirs.run(many, spread, given.batch)),
    }
    show(runs, given.rounds, as_json=given.json)


def show(runs: dict[str, tuple[int, Callable[[], float]]], rounds: int, *, as_json: bool) -> None:
    """One unmeasured round, then the measured ones."""
    for _, run in runs.values():
        run()
    per_s: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, (tokens, run) in runs.items():
            per_s[name].append(tokens / run())
    result = Result(name="generate")
    medians = {name: statistics.median(values) for name, values in per_s.items()}
    theirs = {name: value for name, value in medians.items() if name.endswith(" transformers")}
    result.peers["transformers.generate"] = {
        f"{name.removesuffix(' transformers')}_tokens_per_s": value
        for name, value in theirs.items()
    }
    for name in ("distinct", "groups", "spread", "spread static"):
        result.braid[f"{name.replace(' ', '_')}_tokens_per_s"] = medians[name]
    for name in ("distinct", "groups", "spread"):
        result.ratio(f"{name}_over_transformers", per_s[name], per_s[f"{name} transformers"])
    result.ratio("continuous_over_own_static", per_s["spread"], per_s["spread static"])
    result.show(as_json=as_json)


if __name__ == "__main__":
    main()
