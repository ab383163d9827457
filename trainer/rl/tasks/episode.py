"""The tokens of one sample from prompt to end, as they were sampled and read. Free of torch.

Invariants, each asserted in tests/trainer/rl/tasks/test_episode.py:
- token in, token out: an episode only ever grows, and tokens sampled after any other context than
  its own are refused, so nothing is ever tokenised again;
- exactly the sampled tokens are trained on: prompt and observations have mask 0;
- each sampled token has the log-probabilities and the weights' version it was sampled with;
- a record restores the episode, and its actions the environment.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any

from trainer.rl.tasks.question import Environment, Turn


class Episode:
    """A growing sequence of tokens. Log-probability 0.0 and version -1 where none was sampled."""

    def __init__(self, prompt_tokens: Sequence[int]) -> None:
        self.tokens: list[int] = [int(token) for token in prompt_tokens]
        self.prompt_tokens = len(self.tokens)
        self.loss_mask: list[int] = [0] * self.prompt_tokens
        self.log_probs: list[float] = [0.0] * self.prompt_tokens
        self.model_log_probs: list[float] = [0.0] * self.prompt_tokens
        self.kept_log_mass: list[float] = [0.0] * self.prompt_tokens
        self.versions: list[int] = [-1] * self.prompt_tokens

    def act(
        self,
        context: Sequence[int],
        tokens: Sequence[int],
        *,
        log_probs: Sequence[float],
        versions: Sequence[int],
        model_log_probs: Sequence[float] | None = None,
        kept_log_mass: Sequence[float] | None = None,
    ) -> None:
        """Add sampled tokens. `context` is every token the engine saw before the first of them.

        `log_probs` are of the distribution that was sampled from, `model_log_probs` of the model
        before temperature, top-k and top-p, which left e^`kept_log_mass` of the probability; None
        where nothing was left out. Raises ValueError, and adds nothing, where the context is not
        the episode so far.
        """
        self._assert_same(context)
        model = log_probs if model_log_probs is None else model_log_probs
        mass = [0.0] * len(tokens) if kept_log_mass is None else kept_log_mass
        if {len(log_probs), len(versions), len(model), len(mass)} != {len(tokens)}:
            raise ValueError(
                f"{len(tokens)} tokens with {len(log_probs)} and {len(model)} log-probabilities, "
                f"{len(mass)} masses and {len(versions)} versions; each token needs one of each"
            )
        self._extend(tokens, 1, versions, log_probs, model, mass)

    def observe(self, tokens: Sequence[int]) -> None:
        """Add what the environment said."""
        zeros = [0.0] * len(tokens)
        self._extend(tokens, 0, [-1] * len(tokens), zeros, zeros, zeros)

    @property
    def response_tokens(self) -> int:
        """Sampled tokens: what the step counts."""
        return sum(self.loss_mask)

    @property
    def oldest_version(self) -> int:
        """Version of the oldest weights that sampled a token of it; -1 where none was sampled."""
        return min((version for version in self.versions if version >= 0), default=-1)

    def actions(self) -> list[tuple[int, ...]]:
        """The stretches of sampled tokens between prompt, observations and end."""
        places = range(len(self.tokens))
        stretches = groupby(places, key=self.loss_mask.__getitem__)
        return [tuple(self.tokens[i] for i in stretch) for sampled, stretch in stretches if sampled]

    def record(self) -> dict[str, Any]:
        """The episode as JSON values."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "tokens": list(self.tokens),
            "loss_mask": list(self.loss_mask),
            "log_probs": list(self.log_probs),
            "model_log_probs": list(self.model_log_probs),
            "kept_log_mass": list(self.kept_log_mass),
            "versions": list(self.versions),
        }

    @classmethod
    def restore(cls, record: Mapping[str, Any]) -> "Episode":
        """The episode that `record` was made of."""
        start = record["prompt_tokens"]
        episode = cls(record["tokens"][:start])
        episode.tokens = [int(token) for token in record["tokens"]]
        episode.loss_mask = [int(mask) for mask in record["loss_mask"]]
        episode.log_probs = [float(value) for value in record["log_probs"]]
        episode.model_log_probs = [float(value) for value in record["model_log_probs"]]
        episode.kept_log_mass = [float(value) for value in record["kept_log_mass"]]
        episode.versions = [int(version) for version in record["versions"]]
        return episode

    def _assert_same(self, context: Sequence[int]) -> None:
        if len(context) == len(self.tokens) and list(context) == self.tokens:
            return
        pairs = enumerate(zip(context, self.tokens, strict=False))
        shorter = min(len(context), len(self.tokens))
        place = next((i for i, (theirs, ours) in pairs if theirs != ours), shorter)
        raise ValueError(
            f"tokens were sampled after another context: {len(context)} tokens instead of "
            f"{len(self.tokens)}, different from token {place} on. Hand the engine the episode's "
            "tokens and never text made of them"
        )

    def _extend(
        self,
        tokens: Sequence[int],
        mask: int,
        versions: Sequence[int],
        log_probs: Sequence[float],
        model_log_probs: Sequence[float],
        kept_log_mass: Sequence[float],
    ) -> None:
        self.tokens += [int(token) for token in tokens]
        self.loss_mask += [mask] * len(tokens)
        self.versions += [int(version) for version in versions]
        self.log_probs += [float(value) for value in log_probs]
        self.model_log_probs += [float(value) for value in model_log_probs]
        self.kept_log_mass += [float(value) for value in kept_log_mass]


def replay(
    make: Callable[[], Environment], actions: Sequence[Sequence[int]]
) -> tuple[Environment, Turn | None]:
    """A fresh environment after `actions`, and its last turn (None without actions)."""
    environment, turn = make(), None
    for tokens in actions:
        turn = environment.step(tokens)
    return environment, turn
