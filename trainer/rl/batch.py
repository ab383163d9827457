"""Samples as the rounds of a step: packed streams, with what an objective needs of each token.

T tokens of this rank in one round, S samples in its group's stream, L mixture layers, k experts of
a token.

Guarantees, each asserted in tests/trainer/rl/test_batch.py:
- the label of a token is the next one of the same sample, and there is one exactly where that was
  sampled;
- each value stands with the label it belongs to, also where ranks hold stretches of a stream;
- a rank without samples has a stream of padding, of which nothing is trained.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.data.batch import IGNORED, Batch
from trainer.rl.messages import Sample
from trainer.rl.objectives.stream import GlobalCounts


@dataclass(frozen=True, kw_only=True)
class StepForm:
    """What all rounds of a step have in common."""

    version: int
    """Of the weights being trained."""

    counts: GlobalCounts
    padding_token: int
    has_reference: bool
    """Whether samples have log-probabilities under the reference model."""

    routing_shape: tuple[int, int] | None
    """(L, k) where any sample has its experts recorded."""


class PolicyTokens:
    """What was known of each token of a round when it was sampled.

    A plain class: FSDP2's mixed precision casts tensors it finds in dataclasses.
    """

    def __init__(
        self,
        per_token: dict[str, Tensor],
        tokens_S: Tensor,
        pairs_P2: Tensor,
    ) -> None:
        """`per_token` has a tensor [T] for each of FIELDS, and maybe `reference`."""
        self._per_token = per_token
        self.tokens_S = tokens_S
        """int64: trained tokens of each sample."""

        self.pairs_P2 = pairs_P2
        """int64: chosen and rejected sample of each pair."""

    def of(self, name: str) -> Tensor:
        """A tensor [T]: `sequence` int64, place of the token's sample; `current` bool, whether the
        weights being trained drew it; `advantage`, `log_probs` and `model_log_probs` fp32."""
        return self._per_token[name]

    @property
    def reference_T(self) -> Tensor | None:
        """fp32: log-probability under the reference model, where there is one."""
        return self._per_token.get("reference")

    def share(self, stretches: Sequence[tuple[int, int]]) -> "PolicyTokens":
        """Of these stretches of the stream."""
        return self.at(torch.cat([torch.arange(start, stop) for start, stop in stretches]))

    def at(self, rows_T: Tensor) -> "PolicyTokens":
        """Of these rows of the stream."""
        kept = {name: values_T[rows_T] for name, values_T in self._per_token.items()}
        return PolicyTokens(kept, self.tokens_S, self.pairs_P2)

    def to(self, device: torch.device) -> "PolicyTokens":
        """On `device`; the copies do not block the host."""
        moved = {
            name: values_T.to(device, non_blocking=True)
            for name, values_T in self._per_token.items()
        }
        tokens_S = self.tokens_S.to(device, non_blocking=True)
        return PolicyTokens(moved, tokens_S, self.pairs_P2.to(device, non_blocking=True))


@dataclass(frozen=True, kw_only=True)
class PolicyBatch(Batch):
    """A round of samples."""

    policy: PolicyTokens
    counts: GlobalCounts
    """Of the whole step."""

    def share(self, stretches: tuple[tuple[int, int], ...]) -> "PolicyBatch":
        """As of any batch."""
        shared = super().share(stretches)
        assert isinstance(shared, PolicyBatch)
        return replace(shared, policy=self.policy.share(stretches))

    def to(self, device: torch.device) -> "PolicyBatch":
        """As of any batch."""
        moved = super().to(device)
        assert isinstance(moved, PolicyBatch)
        return replace(moved, policy=self.policy.to(device))


FIELDS: dict[str, type] = {
    "sequence": np.int64,
    "current": np.bool_,
    "advantage": np.float32,
    "log_probs": np.float32,
    "model_log_probs": np.float32,
}


def input_tokens(sample: Sample) -> int:
    """Tokens of a sample that are put in: the last one is a label alone."""
    return sample.num_tokens - 1


def trained_tokens(sample: Sample) -> int:
    """Tokens of a sample that have a loss. A first token has nothing before it to come from."""
    return int(np.count_nonzero(sample.loss_mask[1:]))


def pack_samples(
    samples: Sequence[Sample],
    form: StepForm,
    *,
    multiple: int = 1,
    pairs: Sequence[tuple[int, int]] = (),
) -> PolicyBatch:
    """A stream of whole samples, one after the other, until `multiple` divides it; of none,
    padding. `pairs` are places in `samples`."""
    lengths = [input_tokens(sample) for sample in samples] or [multiple]
    lengths[-1] += -sum(lengths) % multiple
    total = sum(lengths)
    labels_T = np.full(total, IGNORED, dtype=np.int64)
    tokens_T = np.full(total, form.padding_token, dtype=np.int64)
    columns: dict[str, NDArray] = {
        name: np.zeros(total, dtype=dtype) for name, dtype in FIELDS.items()
    }
    if form.has_reference:
        columns["reference"] = np.zeros(total, dtype=np.float32)
    experts_TLk = None
    if form.routing_shape is not None:
        experts_TLk = np.full((total, *form.routing_shape), -1, dtype=np.int64)
    starts = np.cumsum([0, *lengths[:-1]]).tolist()
    for place, (start, sample) in enumerate(zip(starts, samples, strict=False)):
        rows = slice(start, start + input_tokens(sample))
        tokens_T[rows] = sample.tokens[:-1]
        labels_T[rows] = np.where(sample.loss_mask[1:] != 0, sample.tokens[1:], IGNORED)
        for name, values in _values(sample, place, form).items():
            columns[name][rows] = values
        if experts_TLk is not None and sample.routing is not None:
            experts_TLk[rows] = sample.routing
    return PolicyBatch(
        tokens_T=torch.from_numpy(tokens_T),
        labels_T=torch.from_numpy(labels_T),
        positions_T=torch.from_numpy(np.concatenate([np.arange(n) for n in lengths])),
        document_ends=_document_ends(samples, starts, total),
        sequence_ends=tuple(np.cumsum(lengths).tolist()),
        sequence_tokens=tuple(input_tokens(s) for s in samples) or (0,),
        sequence_targets=tuple(trained_tokens(s) for s in samples) or (0,),
        experts_TLk=None if experts_TLk is None else torch.from_numpy(experts_TLk),
        counts=form.counts,
        policy=PolicyTokens(
            {name: torch.from_numpy(values) for name, values in columns.items()},
            torch.tensor([trained_tokens(s) for s in samples] or [0]),
            torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2),
        ),
    )


def _values(sample: Sample, place: int, form: StepForm) -> dict[str, NDArray | float | int]:
    """What stands beside the labels of one sample."""
    values: dict[str, NDArray | float | int] = {
        "sequence": place,
        "current": sample.versions[1:] == form.version,
        "advantage": sample.advantage,
        "log_probs": sample.log_probs[1:],
        "model_log_probs": sample.model_log_probs[1:],
    }
    if form.has_reference and sample.reference_log_probs is not None:
        values["reference"] = sample.reference_log_probs[1:]
    return values


def _document_ends(samples: Sequence[Sample], starts: Sequence[int], total: int) -> tuple[int, ...]:
    """Ends of the samples, and of the padding after them."""
    ends = [start + input_tokens(s) for start, s in zip(starts, samples, strict=False)]
    return tuple(ends) if ends and ends[-1] == total else (*ends, total)
