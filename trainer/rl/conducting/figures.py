"""What the conductor knows of a step, for its line of metrics. Pure.

Guarantees, each asserted in tests/trainer/rl/conducting/test_figures.py:
- each judged group counts once: in the step that trains it, or in the next one where it is left
  out;
- accuracy and rewards are of all answers that have rewards, those of groups left out included;
- there is no figure for what nobody measured.
"""

from collections.abc import Sequence
from math import fsum, sqrt

from trainer.rl.conducting.judging import Judged
from trainer.rl.groups import Use
from trainer.rl.messages import Committed, Published, Pulse, Updated
from trainer.rl.staleness import distribution


class Figures:
    """Sums since the last step."""

    def __init__(self) -> None:
        self.left_out: list[Judged] = []
        """Groups that no step trains, since the last step."""

        self._pulses: dict[str, list[Pulse]] = {}
        self._since_s: float | None = None
        self._publishing: dict[str, float] = {}

    def leave_out(self, judged: Judged) -> None:
        """Count a group that no step trains."""
        self.left_out.append(judged)

    def count(self, use: Use) -> int:
        """Groups left out since the last step."""
        return sum(judged.verdict.use is use for judged in self.left_out)

    def pulse(self, worker: str, pulse: Pulse) -> None:
        """What a worker did."""
        self._pulses.setdefault(worker, []).append(pulse)

    def published(self, message: Published) -> None:
        """A version reached all workers."""
        if "total" in message.seconds:
            self._publishing["publish/seconds"] = message.seconds["total"]
        self._publishing["publish/bytes"] = float(message.sent_bytes)

    def updated(self, message: Updated) -> None:
        """A worker has a version."""
        longest_s = max(message.paused_s, self._publishing.get("publish/pause_s", 0.0))
        self._publishing["publish/pause_s"] = longest_s

    def committed(self, message: Committed) -> None:
        """A step is trained: the wait for its batch is known when the next one is made."""
        self._publishing["timing_s/trainer_wait"] = message.waited_s

    def of_step(
        self, step: int, groups: Sequence[Judged], *, weights_version: int | None, now_s: float
    ) -> dict[str, float]:
        """The figures of the step that trains `groups`; counting begins anew."""
        judged = [*groups, *self.left_out]
        found = self._of_rewards(judged) | self._of_workers(now_s) | self._publishing
        staleness = distribution(step, [group.kept.oldest for group in groups])
        found |= {
            "staleness/mean": staleness.mean,
            "staleness/max": float(staleness.max),
            "groups/trained": float(sum(g.verdict.use is Use.TRAINED for g in groups)),
            "groups/dropped_equal": float(self.count(Use.EQUAL)),
            "groups/faults": float(self.count(Use.FAULT)),
        }
        if weights_version is not None:
            found["weights_version"] = float(weights_version)
        self.left_out, self._pulses, self._since_s = [], {}, now_s
        self._publishing = {}
        return found

    def _of_rewards(self, judged: Sequence[Judged]) -> dict[str, float]:
        rewards = [reward for group in judged for reward in group.rewards]
        answers = [a for group in judged if group.prompt is not None for a in group.prompt.answers]
        if not rewards or not answers:
            return {}
        mean = fsum(rewards) / len(rewards)
        variance = fsum((reward - mean) ** 2 for reward in rewards) / len(rewards)
        drawn = sum(answer.response_tokens for answer in answers)
        mass = fsum(float(answer.kept_log_mass.sum()) for answer in answers)
        return {
            "reward/mean": mean,
            "reward/std": sqrt(variance),
            "accuracy": sum(reward >= 1.0 for reward in rewards) / len(rewards),
            "response_length/mean": drawn / len(answers),
            "response_length/cut": sum(answer.cut for answer in answers) / len(answers),
            "rollout/kept_log_mass": mass / max(1, drawn),
        }

    def _of_workers(self, now_s: float) -> dict[str, float]:
        told = [pulse for pulses in self._pulses.values() for pulse in pulses]
        found: dict[str, float] = {}
        if told:
            found["timing_s/rollout_wait"] = fsum(p.idle_s for p in told) / len(self._pulses)
            found["timing_s/rollout_busy"] = fsum(p.busy_s for p in told) / len(self._pulses)
            for name in {name for pulse in told for name in pulse.figures}:
                values = [p.figures[name] for p in told if name in p.figures]
                found[name] = fsum(values) / len(values)
        if told and self._since_s is not None and now_s > self._since_s:
            drawn = sum(pulse.drawn_tokens for pulse in told)
            found["rollout/tokens_per_s"] = drawn / (now_s - self._since_s)
        return found
