"""All answers to one prompt: which requests an engine gets for them, and what is told. No torch.

Guarantees, each asserted in tests/trainer/rl/rollout/test_answering.py:
- answers whose text so far is the same are one request, so that an engine shares its blocks;
- requests are a function of the prompt's number, the run's seed and what was kept;
- the tokens of an episode are handed to the engine as they are, never text made of them.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from trainer.rl.engine.request import Answer, Request
from trainer.rl.ledger_records import Kept
from trainer.rl.payload import PromptRecord
from trainer.rl.rollout.one_answer import OneAnswer
from trainer.rl.rollout.rules import AnswerRules
from trainer.rl.rollout.seeds import sample_seed
from trainer.rl.tasks.build import build_environment

Partial = Mapping[tuple[str, int], Answer]
"""Answers that an engine is drawing, by request and place in it."""


class PromptRun:
    """Under one lease."""

    def __init__(
        self, rules: AnswerRules, *, number: int, lease_id: int, kept: Kept | None
    ) -> None:
        """Raises DataError where the prompt is no good."""
        self._rules = rules
        self._number = number
        self.lease_id = lease_id
        self._prompt = rules.book.prompt(number)
        known = () if kept is None else PromptRecord.from_plain(kept.payload).answers
        question = self._prompt.question
        make = partial(build_environment, rules.task_config, rules.task, rules.codec, question)
        self._answers = [
            OneAnswer(
                self._prompt.tokens,
                make,
                rules.task.extract,
                longest_tokens=rules.longest_tokens,
                kept=known[sample] if sample < len(known) else None,
            )
            for sample in range(rules.samples)
        ]
        self._places: dict[str, list[int]] = {}

    @property
    def done(self) -> bool:
        """Whether all answers are complete."""
        return all(answer.ended for answer in self._answers)

    @property
    def request_ids(self) -> list[str]:
        """Of the requests that an engine has."""
        return list(self._places)

    def begin(self) -> list[Request]:
        """What to ask first."""
        open_places = [place for place, one in enumerate(self._answers) if not one.ended]
        first = [place for place in open_places if self._answers[place].turn == 0]
        groups = [first, *([place] for place in open_places if place not in first)]
        found = [self._request(group) for group in groups if group]
        return [request for request in found if request is not None]

    def take(self, answer: Answer) -> Request | None:
        """A finished turn of one answer; what to ask next for it, if anything."""
        place = self._places[answer.request_id][answer.sample]
        one = self._answers[place]
        one.take(answer)
        return None if one.ended else self._request([place])

    def forget(self, request_id: str) -> None:
        """The engine is done with a request."""
        self._places.pop(request_id, None)

    def record(self, drawing: Partial) -> PromptRecord:
        """As it is, with what the engine is drawing; once all is complete, with the reference's
        log-probabilities where they are wanted."""
        open_answers: dict[int, Answer] = {}
        for (request_id, sample), answer in drawing.items():
            if request_id in self._places:
                open_answers[self._places[request_id][sample]] = answer
        references = None
        if self.done and self._rules.reference is not None:
            references = self._rules.reference([one.episode.tokens for one in self._answers])
        question = self._prompt.question
        return PromptRecord(
            prompt=question.text,
            reference=question.reference,
            answers=tuple(
                one.record(
                    None if one.ended else open_answers.get(place),
                    None if references is None else references[place],
                )
                for place, one in enumerate(self._answers)
            ),
        )

    def _request(self, places: list[int]) -> Request | None:
        """One for answers with the same text so far; None where it leaves no room."""
        first = self._answers[places[0]]
        sampling = self._rules.sampling
        room = min(first.room, sampling.max_new_tokens)
        going = [p for p in places if len(self._answers[p].started.tokens) < room]
        for place in places:
            if place not in going:
                self._end_here(place)
        if not going:
            return None
        turn = first.turn
        name = f"{self.lease_id}/{turn}" + (f"/{places[0]}" if turn else "")
        self._places[name] = going
        begun = tuple(tuple(self._answers[p].started.tokens) for p in going)
        return Request(
            id=name,
            prompt=tuple(first.episode.tokens),
            seeds=tuple(sample_seed(self._rules.seed, self._number, p, turn) for p in going),
            sampling=replace(sampling, max_new_tokens=room),
            started=begun if any(begun) else (),
        )

    def _end_here(self, place: int) -> None:
        """A limit was lowered since the answer's last tokens were drawn, or there is no room."""
        one = self._answers[place]
        if one.started.tokens:
            one.take(
                Answer(
                    request_id="",
                    sample=0,
                    seed=0,
                    tokens=list(one.started.tokens),
                    reason="length",
                )
            )
        if not one.ended:
            one.end_cut()
