"""From judged groups to what a step trains on. Pure.

Guarantees, each asserted in tests/trainer/rl/conducting/test_batches.py:
- samples come in the order of their groups and have the advantages of their group alone;
- a penalty for length changes rewards, and never makes a group useful by itself;
- of pairs, the chosen answer has the higher reward, both are in the batch, and nothing else is.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from trainer.rl.advantages import centred, entropy_scaled, soft_overlong_penalty, standardised
from trainer.rl.conducting.judging import Judged
from trainer.rl.config import RlConfig, RolloutConfig
from trainer.rl.entropy import answer_clusters
from trainer.rl.groups import Use
from trainer.rl.messages import Sample
from trainer.rl.objectives.config import ObjectiveConfig
from trainer.rl.payload import AnswerRecord
from trainer.rl.rejection import preference_pairs, rejection_sample


@dataclass(frozen=True, kw_only=True)
class Batch:
    """The samples of a step."""

    samples: tuple[Sample, ...]
    pairs: tuple[tuple[int, int], ...] = ()
    """(chosen, rejected) places in `samples`."""


class Batches:
    """Makes them, as one run's recipe says."""

    def __init__(self, rl: RlConfig, rollout: RolloutConfig, *, seed: int) -> None:
        self._objective = rl.objective
        self._overlong_tokens = rl.overlong_tokens
        self._max_tokens = rollout.max_new_tokens
        self._seed = seed

    def of(self, groups: Sequence[Judged]) -> Batch:
        """The batch of these groups, none of them a fault."""
        samples: list[Sample] = []
        pairs: list[tuple[int, int]] = []
        for group in groups:
            if not self._objective.learns_from_pairs:
                samples += self._samples(group)
                continue
            for pair in self._pairs(group):
                pairs.append((len(samples), len(samples) + 1))
                samples += [self._sample(group, place, 0.0) for place in pair]
        return Batch(samples=tuple(samples), pairs=tuple(pairs))

    def _samples(self, group: Judged) -> list[Sample]:
        advantages = self._advantages(group)
        return [self._sample(group, place, value) for place, value in enumerate(advantages)]

    def _sample(self, group: Judged, place: int, advantage: float) -> Sample:
        assert group.prompt is not None
        answer = group.prompt.answers[place]
        return Sample(
            tokens=answer.tokens,
            loss_mask=answer.loss_mask,
            log_probs=answer.log_probs,
            model_log_probs=answer.model_log_probs,
            versions=answer.versions,
            advantage=advantage,
            reward=group.rewards[place],
            group=group.number,
            reference_log_probs=answer.reference_log_probs,
            routing=answer.routing,
        )

    def _advantages(self, group: Judged) -> tuple[float, ...]:
        assert group.prompt is not None
        answers = group.prompt.answers
        if group.verdict.use is not Use.TRAINED:
            return (0.0,) * len(answers)
        shaped = [r + self._penalty(a) for r, a in zip(group.rewards, answers, strict=True)]
        kind = self._objective.resolved().advantage
        if kind == "centred":
            return centred(shaped)
        if kind == "standardised":
            return standardised(shaped)
        return entropy_scaled(
            shaped,
            answer_clusters([answer.final for answer in answers]),
            scale=self._objective.entropy_scale,
            shape=self._objective.entropy_shape,
        )

    def _penalty(self, answer: AnswerRecord) -> float:
        if not self._overlong_tokens:
            return 0.0
        return soft_overlong_penalty(
            answer.longest_turn, max_tokens=self._max_tokens, cache_tokens=self._overlong_tokens
        )

    def _pairs(self, group: Judged) -> list[tuple[int, int]]:
        """(chosen, rejected) answers of a group; none where all are as good."""
        if group.verdict.use is not Use.TRAINED:
            return []
        random = Random(f"pairs/{self._seed}/{group.number}")
        return pairs_of(group.rewards, self._objective, random)


def pairs_of(
    rewards: Sequence[float], objective: ObjectiveConfig, random: Random
) -> list[tuple[int, int]]:
    """(chosen, rejected) places of answers.

    dpo: the best answer and the worst, the first of equals. rso: half of the answers are kept by
    rejection sampling and paired at random; where all that are kept are as good, there is no pair.
    """
    if objective.kind == "dpo":
        best = max(range(len(rewards)), key=rewards.__getitem__)
        worst = min(range(len(rewards)), key=rewards.__getitem__)
        return [(best, worst)]
    wanted = max(2, len(rewards) // 4 * 2)
    kept = rejection_sample(rewards, wanted=wanted, beta=objective.beta, random=random)
    random.shuffle(kept)
    return preference_pairs(kept, rewards)
