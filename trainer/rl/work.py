"""One rank's part of a step by rewards, from the batch that all ranks have.

Guarantees, each asserted in tests/trainer/rl/test_work.py:
- every sample, and every pair, is trained once, on ranks that hold it together;
- denominators are counts of the whole step, the same on every rank;
- a step without any sample has a loss of 0 and zero gradients;
- an episode that no group of ranks can hold is a DataError that names the keys to change.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from parallel.sequence.stretches import padding_multiple, token_ranges
from trainer.errors import DataError
from trainer.feed import StepWork
from trainer.figures import StepFigures
from trainer.planner.plan import Round, SequenceGroup, StepPlan
from trainer.rl.batch import PolicyBatch, StepForm, input_tokens, pack_samples, trained_tokens
from trainer.rl.judging import FIGURES
from trainer.rl.messages import Sample, TrainOn
from trainer.rl.objectives.stream import GlobalCounts
from trainer.rl.prompts import prompt_units, share_prompts, stream_tokens

NAMES = {
    "clipped": "objective/clipped",
    "kl": "objective/kl",
    "reference_kl": "objective/reference_kl",
    "kernel": "trust/kernel",
    "version": "trust/version",
}
"""Of the means of FIGURES, in the metrics."""

Units = Sequence[Sequence[int]]
"""Places of samples that one group of ranks has to hold together."""

ChoosePlan = Callable[[int, list[int]], StepPlan]
"""The plan of a step whose units have these lengths, the same on all ranks, which all call it."""


@dataclass(frozen=True, kw_only=True)
class WorkMaker:
    """Makes the work of one rank."""

    data_rank: int
    longest_tokens: int
    """Longest unit that some group of ranks can hold."""

    padding_token: int
    max_response_tokens: int
    choose: ChoosePlan
    prompt_units: int | None = None
    """Samples of one prompt are computed together and share its tokens, as long as there are so
    many units of them; None: each sample is computed alone."""

    def work(self, step: int, order: TrainOn) -> StepWork:
        """Of `step`. All ranks call it with the same order."""
        units = self._units(order)
        rows = [self._rows([order.samples[i] for i in unit]) for unit in units]
        # Attention is given samples written out, so that is what they need room for.
        lengths = [sum(input_tokens(order.samples[i]) for i in unit) for unit in units]
        squares = [sum(input_tokens(order.samples[i]) ** 2 for i in unit) for unit in units]
        self._require_room(lengths)
        plan = _with_rounds(self.choose(step, lengths))
        groups = tuple(r.group_of(self.data_rank) for r in plan.rounds)
        form = self._form(order, units)
        shares = [(i, g.size) for g in groups for i in g.sequences]
        return StepWork(
            plan=plan,
            groups=groups,
            batches=tuple(self._batch(group, order, units, form) for group in groups),
            sequences=(),
            num_tokens=sum(rows),
            squared_tokens=sum(squares),
            own_tokens=sum(rows[i] / ranks for i, ranks in shares),
            own_squared_tokens=sum(squares[i] / ranks for i, ranks in shares),
            num_targets=form.counts.tokens,
            divisor=form.counts.tokens,
            figures=_figures(order, form),
        )

    def _units(self, order: TrainOn) -> Units:
        if order.pairs:
            return order.pairs
        if self.prompt_units is None:
            return tuple((place,) for place in range(len(order.samples)))
        return prompt_units(
            order.samples, least=self.prompt_units, longest_tokens=self.longest_tokens
        )

    def _rows(self, samples: Sequence[Sample]) -> int:
        """Of a unit of these."""
        shares = self.prompt_units is not None
        return stream_tokens(samples) if shares else sum(map(input_tokens, samples))

    def _require_room(self, lengths: Sequence[int]) -> None:
        longest = max(lengths, default=0)
        if longest > self.longest_tokens:
            raise DataError(
                f"an episode, or a pair of them, of {longest} tokens is longer than ranks can hold "
                f"together ({self.longest_tokens}); raise train.max_tokens_per_device, or lower "
                "rollout.max_new_tokens, rl.task.max_turns or rl.max_prompt_tokens"
            )

    def _form(self, order: TrainOn, units: Units) -> StepForm:
        members = [order.samples[i] for unit in units for i in unit]
        routed = [s.routing.shape[1:] for s in members if s.routing is not None]
        return StepForm(
            version=order.version,
            counts=GlobalCounts(
                # A step in which nothing was sampled has a loss of 0 and not 0/0.
                tokens=max(1, sum(map(trained_tokens, members))),
                sequences=max(1, len(members)),
                max_response_tokens=self.max_response_tokens,
                pairs=len(order.pairs),
            ),
            padding_token=self.padding_token,
            has_reference=any(s.reference_log_probs is not None for s in members),
            routing_shape=(routed[0][0], routed[0][1]) if routed else None,
        )

    def _batch(
        self,
        group: SequenceGroup,
        order: TrainOn,
        units: Units,
        form: StepForm,
    ) -> PolicyBatch:
        """This rank's share of its group's stream."""
        own = [units[i] for i in group.sequences]
        starts = np.cumsum([0, *map(len, own)]).tolist()
        samples = [order.samples[i] for unit in own for i in unit]
        whole = pack_samples(
            samples,
            form,
            multiple=padding_multiple(group.attention),
            pairs=[(at, at + 1) for at in starts[:-1]] if order.pairs else (),
        )
        if self.prompt_units is not None:
            return share_prompts(whole, samples)
        if group.size == 1:
            return whole
        position = self.data_rank - group.first_rank
        return whole.share(token_ranges(whole.sequence_ends[-1], group.attention, position))


def _with_rounds(plan: StepPlan) -> StepPlan:
    """A step without samples has one round of padding: all ranks run the same collectives."""
    return plan if plan.rounds else replace(plan, rounds=(Round(groups=()),))


def _figures(order: TrainOn, form: StepForm) -> StepFigures:
    """What the conductor knows, the part of the sampler, and what the sums are divided by."""
    samples = order.samples
    current = sum(map(lambda s: _drawn(s, by=form.version), samples))
    trained = sum(map(trained_tokens, samples))
    divisors = {name: float(trained) for name in FIGURES}
    divisors |= {"kernel": float(current), "version": float(trained - current)}
    known = dict(order.figures)
    if trained:
        known["trust/mask"] = sum(map(_left_out, samples)) / trained
    return StepFigures(
        known=known, divisors=tuple((NAMES[name], divisors[name]) for name in FIGURES)
    )


def _drawn(sample: Sample, *, by: int) -> int:
    """Trained tokens that version `by` drew."""
    return int(np.count_nonzero(sample.loss_mask[1:] & (sample.versions[1:] == by)))


def _left_out(sample: Sample) -> float:
    """Sum of the differences that temperature, top-k and top-p make to a log-probability."""
    mask = sample.loss_mask[1:] != 0
    differences = sample.log_probs[1:][mask] - sample.model_log_probs[1:][mask]
    return float(differences.astype(np.float64).sum())
