"""Prompts, an engine and what is told of them. One thread calls it.

Guarantees, each asserted in tests/trainer/rl/rollout/test_answering.py:
- what is answered does not depend on what else is answered, nor on being given up and taken up
  again elsewhere;
- under a lease that was given up nothing is told any more.
"""

from trainer.rl.engine.protocol import RolloutEngine
from trainer.rl.engine.request import Request
from trainer.rl.messages import Answer, Answered, Under
from trainer.rl.rollout.prompt_run import PromptRun
from trainer.rl.rollout.rules import AnswerRules


class Answering:
    """The prompts of one worker."""

    def __init__(self, engine: RolloutEngine, rules: AnswerRules) -> None:
        self._engine = engine
        self._rules = rules
        self._runs: dict[int, PromptRun] = {}
        self._by_request: dict[str, PromptRun] = {}
        self._left: dict[str, int] = {}
        """Answers of each request that the engine has not finished."""
        self._told: dict[int, int] = {}
        """Tokens drawn when a prompt was last told of."""

    @property
    def running(self) -> int:
        """Prompts under way."""
        return len(self._runs)

    def begin(self, message: Answer) -> list[Answered]:
        """Start to answer a prompt; its answers where all were complete already."""
        run = PromptRun(
            self._rules, number=message.number, lease_id=message.lease_id, kept=message.kept
        )
        self._runs[message.lease_id] = run
        for request in run.begin():
            self._submit(run, request)
        return self._told_if_done(run)

    def step(self) -> tuple[list[Answered], int]:
        """One forward for all; the prompts that it completed, and tokens drawn."""
        step = self._engine.step()
        told: list[Answered] = []
        for answer in step.finished:
            run = self._by_request[answer.request_id]
            request = run.take(answer)
            self._left[answer.request_id] -= 1
            if not self._left[answer.request_id]:
                self._forget(run, answer.request_id)
            if request is not None:
                self._submit(run, request)
            told += self._told_if_done(run)
        return told, len(step.drawn)

    def under(self) -> list[Under]:
        """All that is new of prompts under way."""
        drawing = {(a.request_id, a.sample): a for a in self._engine.unfinished()}
        told = []
        for lease_id, run in self._runs.items():
            record = run.record(drawing)
            tokens = sum(answer.response_tokens for answer in record.answers)
            if tokens == self._told.get(lease_id, 0):
                continue
            self._told[lease_id] = tokens
            kept = record.kept()
            if kept is not None:
                told.append(Under(lease_id=lease_id, kept=kept))
        return told

    def give_up(self, lease_ids: tuple[int, ...]) -> None:
        """Stop these, or all where none is named."""
        for lease_id in lease_ids or tuple(self._runs):
            run = self._runs.pop(lease_id, None)
            self._told.pop(lease_id, None)
            for request_id in run.request_ids if run is not None else ():
                self._engine.cancel(request_id)
                self._by_request.pop(request_id, None)
                self._left.pop(request_id, None)

    def _submit(self, run: PromptRun, request: Request) -> None:
        self._engine.submit(request)
        self._by_request[request.id] = run
        self._left[request.id] = len(request.seeds)

    def _forget(self, run: PromptRun, request_id: str) -> None:
        del self._by_request[request_id], self._left[request_id]
        run.forget(request_id)

    def _told_if_done(self, run: PromptRun) -> list[Answered]:
        if not run.done:
            return []
        del self._runs[run.lease_id]
        self._told.pop(run.lease_id, None)
        kept = run.record({}).kept()
        assert kept is not None, "the first turn of an answer draws a token"
        return [Answered(lease_id=run.lease_id, kept=kept)]
