"""What finished groups are worth: rewards by the environment, or asked of the reward function.

Pure. Guarantees, each asserted in tests/trainer/rl/conducting/test_judging.py:
- a group is judged once per answer: rewards that were asked for earlier answers to the same prompt
  are refused;
- what has no rewards, or cannot be read, is a fault with its reason, never a number.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import count

from trainer.rl.config import RlConfig
from trainer.rl.groups import Use, Verdict, judge
from trainer.rl.ledger_records import Kept, Record
from trainer.rl.payload import PromptRecord
from trainer.rl.rewards.outcome import RewardRequest, RewardResult


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A finished group and what it is good for."""

    number: int
    kept: Kept
    prompt: PromptRecord | None
    """None where it could not be read."""

    rewards: tuple[float, ...]
    """Before any shaping; none for a fault."""

    verdict: Verdict


class Judging:
    """The judgements on groups that may still be trained, or trained again."""

    def __init__(self, rl: RlConfig) -> None:
        self._samples = rl.samples_per_prompt
        self._asks = bool(rl.reward.function)
        self._ids = count()
        self._asked: dict[int, tuple[Record, PromptRecord]] = {}
        self._judged: dict[int, Judged] = {}

    def __getitem__(self, number: int) -> Judged:
        """The judgement on a prompt."""
        return self._judged[number]

    def __contains__(self, number: int) -> bool:
        """Whether a prompt is judged."""
        return number in self._judged

    def take(self, record: Record) -> RewardRequest | Judged:
        """A finished group: its judgement, or what to ask for it."""
        assert record.kept is not None
        try:
            prompt = PromptRecord.from_plain(record.kept.payload)
        except ValueError as error:
            return self._fault(record, str(error))
        if not self._asks:
            scores = [answer.score for answer in prompt.answers]
            rewards = [score for score in scores if score is not None]
            return self._judge(record, prompt, rewards, "")
        number = next(self._ids)
        self._asked[number] = (record, prompt)
        return RewardRequest(
            number=number,
            prompt=prompt.prompt,
            completions=tuple(answer.text for answer in prompt.answers),
            reference=prompt.reference,
        )

    def result(self, result: RewardResult) -> Judged | None:
        """The judgement that a result leads to; None where nobody waits for it any more."""
        asked = self._asked.pop(result.number, None)
        if asked is None:
            return None
        fault = "" if result.fault is None else f"{result.fault.kind.value}: {result.fault.reason}"
        return self._judge(*asked, result.rewards, fault)

    def retain(self, finished: Iterable[Record]) -> list[Record]:
        """After training went back: keep what was judged of answers that are still there; those
        that have to be judged anew."""
        self._asked.clear()
        found = [(record, self._judged.get(record.number)) for record in finished]
        kept = {r.number: j for r, j in found if j is not None and j.kept is r.kept}
        self._judged = kept
        return [record for record, _ in found if record.number not in kept]

    def forget(self, numbers: Iterable[int]) -> None:
        """Let go of prompts that are settled."""
        for number in numbers:
            self._judged.pop(number, None)

    def _fault(self, record: Record, reason: str) -> Judged:
        return self._judge(record, None, None, reason)

    def _judge(
        self,
        record: Record,
        prompt: PromptRecord | None,
        rewards: Iterable[float] | None,
        fault: str,
    ) -> Judged:
        assert record.kept is not None
        values = None if rewards is None else tuple(float(reward) for reward in rewards)
        verdict = judge(record.number, values, samples=self._samples, fault=fault)
        judged = Judged(
            number=record.number,
            kept=record.kept,
            prompt=prompt,
            rewards=() if values is None or verdict.use is Use.FAULT else values,
            verdict=verdict,
        )
        self._judged[record.number] = judged
        return judged
