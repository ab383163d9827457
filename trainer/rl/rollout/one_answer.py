"""One answer to a prompt: an episode in its environment, turn after turn. No torch.

Guarantees, each asserted in tests/trainer/rl/rollout/test_answering.py:
- an answer that goes on from what was kept of it has the tokens, log-probabilities and versions
  that were kept, and its environment is where it was;
- an episode is never longer than the rules allow: it ends, cut, before;
- experts that were recorded when a token was first computed stay.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from trainer.errors import DataError
from trainer.rl.engine.request import Answer
from trainer.rl.payload import AnswerRecord
from trainer.rl.tasks.episode import Episode, replay
from trainer.rl.tasks.question import Environment


@dataclass(kw_only=True)
class Started:
    """Tokens of a turn that is not over, of which another worker had told."""

    tokens: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    model_log_probs: list[float] = field(default_factory=list)
    kept_log_mass: list[float] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)


class OneAnswer:
    """Grows by what an engine draws."""

    def __init__(
        self,
        prompt_tokens: tuple[int, ...],
        make: Callable[[], Environment],
        extract: Callable[[str], str | None],
        *,
        longest_tokens: int,
        kept: AnswerRecord | None = None,
    ) -> None:
        """`make` gives a fresh environment; `kept` is what there is of the answer already."""
        self._extract = extract
        self._longest_tokens = longest_tokens
        self.episode = Episode(prompt_tokens)
        self.started = Started()
        self.ended = self._cut = False
        self._text = ""
        self._final: str | None = None
        self._score: float | None = None
        self._routing: NDArray[np.int16] | None = None
        if kept is not None:
            self._go_on(kept)
        self._environment, _ = replay(make, self.episode.actions())

    @property
    def turn(self) -> int:
        """Turns that are over."""
        return len(self.episode.actions())

    @property
    def room(self) -> int:
        """Tokens that fit still."""
        return self._longest_tokens - len(self.episode.tokens)

    def take(self, answer: Answer) -> None:
        """A turn is over: act, and read what the environment says."""
        self._act(answer)
        if answer.routing is not None:
            self._note_routing(answer.routing)
        self.started = Started()
        turn = self._environment.step(tuple(answer.tokens))
        if turn.done:
            self._end(cut=answer.reason == "length")
            return
        if not turn.observation:
            raise DataError(
                "an environment answered with no tokens although the episode goes on, so that "
                "nothing parts two turns; have it answer at least one token"
            )
        if len(turn.observation) >= self.room:
            self._end(cut=True)
            return
        self.episode.observe(turn.observation)

    def end_cut(self) -> None:
        """End here, as there is no room for another token."""
        self._end(cut=True)

    def record(
        self, open_answer: Answer | None = None, reference: NDArray[np.float32] | None = None
    ) -> AnswerRecord:
        """As it is, with the tokens of a turn that an engine is drawing."""
        episode = self.episode
        if not self.ended:
            episode = Episode.restore(episode.record())
            open_tokens = self._act(open_answer, episode)
        else:
            open_tokens = 0
        return AnswerRecord(
            prompt_tokens=episode.prompt_tokens,
            tokens=np.array(episode.tokens, np.int32),
            loss_mask=np.array(episode.loss_mask, np.int8),
            log_probs=np.array(episode.log_probs, np.float32),
            model_log_probs=np.array(episode.model_log_probs, np.float32),
            kept_log_mass=np.array(episode.kept_log_mass, np.float32),
            versions=np.array(episode.versions, np.int32),
            open_tokens=open_tokens,
            ended=self.ended,
            cut=self._cut,
            text=self._text,
            final=self._final,
            score=self._score,
            reference_log_probs=reference,
            routing=self._routing if self.ended else None,
        )

    def _act(self, answer: Answer | None, episode: Episode | None = None) -> int:
        """Add what was kept of a turn and what was drawn since; how many tokens it has."""
        episode = self.episode if episode is None else episode
        begun = self.started
        if answer is None:
            answer = Answer(request_id="", sample=0, seed=0, tokens=list(begun.tokens))
        assert answer.tokens[: len(begun.tokens)] == begun.tokens
        episode.act(
            episode.tokens,
            answer.tokens,
            log_probs=begun.log_probs + answer.logprobs,
            versions=begun.versions + answer.versions,
            model_log_probs=begun.model_log_probs + answer.model_logprobs,
            kept_log_mass=begun.kept_log_mass + answer.kept_log_mass,
        )
        return len(answer.tokens)

    def _end(self, *, cut: bool) -> None:
        self.ended, self._cut = True, cut
        self._text = self._environment.answer()
        self._final = self._extract(self._text)
        self._score = self._environment.score()

    def _note_routing(self, routing: NDArray[np.int16]) -> None:
        known = 0 if self._routing is None else len(self._routing)
        new = routing[known:]
        self._routing = new if self._routing is None else np.concatenate((self._routing, new))

    def _go_on(self, kept: AnswerRecord) -> None:
        whole = len(kept.tokens) - kept.open_tokens
        names = ("log_probs", "model_log_probs", "kept_log_mass", "versions")
        values = {name: vars(kept)[name].tolist() for name in (*names, "tokens", "loss_mask")}
        closed = {name: listed[:whole] for name, listed in values.items()}
        self.episode = Episode.restore({"prompt_tokens": kept.prompt_tokens, **closed})
        opened = {name: values[name][whole:] for name in (*names, "tokens")}
        self.started = Started(**opened)
        self.ended, self._cut, self._routing = kept.ended, kept.cut, kept.routing
        self._text, self._final, self._score = kept.text, kept.final, kept.score
