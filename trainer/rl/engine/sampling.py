"""Draw one token per row, and say how likely it was.

R rows, V vocabulary, J tokens that top-k and top-p may leave, n runs of b tokens.

Guarantees, each asserted in tests/trainer/rl/engine/test_sampling.py:
- a row's token depends on its logits, settings and uniform number alone;
- tokens are drawn with the probability that is reported for them;
- no token outside top-k and top-p is ever drawn, and none of probability zero.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.rl.engine.request import Sampling

_SUMMED = 64
_FIRST_CANDIDATES = 128


@dataclass(frozen=True, kw_only=True)
class RowSettings:
    """Settings of each row. Plain numbers where all rows agree would change nothing but speed."""

    temperature_R: Tensor | None
    """fp32; None where it is 1 in all rows. 0 takes the likeliest token."""

    truncated: tuple[int, ...]
    """Rows with top-k or top-p."""

    top_k: tuple[int, ...]
    """Of those rows; 0 keeps all."""

    top_p: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Draws:
    """One entry per row, on the host."""

    tokens: list[int]
    logprobs: list[float]
    """Of the distribution that was sampled from."""

    model_logprobs: list[float]
    kept_log_mass: list[float]
    kept_ids: dict[int, Tensor]
    """Rows with top-k or top-p: the tokens that could be drawn."""


def settings_of(samplings: Sequence[Sampling], device: torch.device) -> RowSettings:
    """The settings of one row each."""
    first = samplings[0]
    if len(set(map(id, samplings))) == 1 and first.temperature == 1.0 and not first.truncates:
        return RowSettings(temperature_R=None, truncated=(), top_k=(), top_p=())
    truncated = [(row, sampling) for row, sampling in enumerate(samplings) if sampling.truncates]
    temperatures = [sampling.temperature for sampling in samplings]
    return RowSettings(
        temperature_R=None
        if all(temperature == 1.0 for temperature in temperatures)
        else torch.tensor(temperatures, device=device),
        truncated=tuple(row for row, _ in truncated),
        top_k=tuple(sampling.top_k for _, sampling in truncated),
        top_p=tuple(sampling.top_p for _, sampling in truncated),
    )


def draw(logits_RV: Tensor, uniform_R: Tensor, settings: RowSettings) -> Draws:
    """Tokens and their log-probabilities. `uniform_R` is fp64 in [0, 1)."""
    logits_RV = logits_RV.float()
    scaled_RV, greedy_R = _scaled(logits_RV, settings.temperature_R)
    top_R1 = scaled_RV.amax(dim=1, keepdim=True)
    weights_RV = (scaled_RV - top_R1).exp_()
    runs_Rnb = _runs(weights_RV)
    sums_Rn = runs_Rnb.sum(dim=2, dtype=torch.float64)
    total_R = sums_Rn.sum(dim=1)
    token_R = _inverse(runs_Rnb, sums_Rn, uniform_R)
    log_mass_R = torch.zeros_like(total_R)
    kept_ids: dict[int, Tensor] = {}
    if settings.truncated:
        kept_ids = _truncate(weights_RV, total_R, uniform_R, settings, token_R, log_mass_R)
    if greedy_R is not None:
        token_R = torch.where(greedy_R, logits_RV.argmax(dim=1), token_R)
    scaled_R = scaled_RV.gather(1, token_R.unsqueeze(1)).squeeze(1)
    full_R = scaled_R - top_R1.squeeze(1) - total_R.log()
    drawn_R, model_R = full_R - log_mass_R, full_R
    if settings.temperature_R is not None:
        raw_R = logits_RV.gather(1, token_R.unsqueeze(1)).squeeze(1)
        model_R = raw_R - logits_RV.logsumexp(dim=1)
    if greedy_R is not None:
        drawn_R = drawn_R.masked_fill(greedy_R, 0.0)
    host = torch.stack((token_R.double(), drawn_R.double(), model_R.double(), log_mass_R))
    tokens, logprobs, model_logprobs, log_mass = host.tolist()
    return Draws(
        tokens=[int(token) for token in tokens],
        logprobs=logprobs,
        model_logprobs=model_logprobs,
        kept_log_mass=log_mass,
        kept_ids=kept_ids,
    )


def _scaled(logits_RV: Tensor, temperature_R: Tensor | None) -> tuple[Tensor, Tensor | None]:
    if temperature_R is None:
        return logits_RV, None
    greedy_R = temperature_R == 0.0
    return logits_RV / temperature_R.masked_fill(greedy_R, 1.0).unsqueeze(1), greedy_R


def _runs(weights_RV: Tensor) -> Tensor:
    """[R, n, b]: runs of tokens, the last filled up with weights of zero. Two short searches, for
    the run and within it, take the place of one over the whole vocabulary."""
    missing = -weights_RV.shape[1] % _SUMMED
    padded = F.pad(weights_RV, (0, missing)) if missing else weights_RV
    return padded.unflatten(1, (-1, _SUMMED))


def _inverse(runs_Rnb: Tensor, sums_Rn: Tensor, uniform_R: Tensor) -> Tensor:
    """The token at which the running sum of the weights passes the uniform share of their total."""
    ends_Rn = sums_Rn.cumsum(dim=1)
    wanted_R1 = uniform_R.unsqueeze(1) * ends_Rn[:, -1:]
    run_R1 = _first_beyond(ends_Rn, wanted_R1)
    begin_R1 = ends_Rn.gather(1, run_R1) - sums_Rn.gather(1, run_R1)
    run_R1b = run_R1.unsqueeze(2).expand(-1, -1, _SUMMED)
    inside_Rb = runs_Rnb.gather(1, run_R1b).squeeze(1).cumsum(dim=1, dtype=torch.float64)
    return (run_R1 * _SUMMED + _first_beyond(inside_Rb, wanted_R1 - begin_R1)).squeeze(1)


def _first_beyond(ends_Rn: Tensor, wanted_R1: Tensor) -> Tensor:
    """The first place whose running sum is more than wanted, or, where rounding leaves none, the
    last that adds to the sum: never one of weight zero."""
    beyond_R1 = (ends_Rn <= wanted_R1).sum(dim=1, keepdim=True)
    last_R1 = (ends_Rn < ends_Rn[:, -1:]).sum(dim=1, keepdim=True)
    return torch.minimum(beyond_R1, last_R1)


def _truncate(
    weights_RV: Tensor,
    total_R: Tensor,
    uniform_R: Tensor,
    settings: RowSettings,
    token_R: Tensor,
    log_mass_R: Tensor,
) -> dict[int, Tensor]:
    """Draw the truncated rows again, from what is kept; writes their tokens and log shares."""
    rows = torch.tensor(settings.truncated, device=weights_RV.device)
    top_k = torch.tensor(settings.top_k, device=rows.device).unsqueeze(1)
    top_p = torch.tensor(settings.top_p, dtype=torch.float64, device=rows.device).unsqueeze(1)
    weights_rV, total_r1 = weights_RV[rows], total_R[rows].unsqueeze(1)
    vocabulary = weights_RV.shape[1]
    top_k = top_k.masked_fill(top_k == 0, vocabulary).clamp(max=vocabulary)
    every_k = int(top_k.max())
    candidates = min(_FIRST_CANDIDATES, every_k)
    while True:
        sorted_rJ, ids_rJ = weights_rV.topk(candidates, dim=1)
        sorted_rJ = sorted_rJ.double()
        among_k_rJ = sorted_rJ * (torch.arange(candidates, device=rows.device) < top_k)
        ends_rJ = among_k_rJ.cumsum(dim=1)
        # top-p is a share of what top-k leaves; as long as not all of that is seen, it is at
        # most the rest of the total away.
        seen_all = candidates >= top_k
        of_r1 = torch.where(seen_all, ends_rJ[:, -1:], total_r1)
        enough = seen_all | ((top_k == vocabulary) & (ends_rJ[:, -1:] >= top_p * of_r1))
        if candidates == every_k or bool(enough.all()):
            break
        candidates = min(8 * candidates, every_k)
    kept_rJ = (among_k_rJ > 0) & ((ends_rJ - among_k_rJ < top_p * of_r1) | (top_p >= 1.0))
    kept_rJ[:, 0] = True
    share_rJ = among_k_rJ * kept_rJ
    drawn_r1 = _first_beyond(
        share_rJ.cumsum(dim=1), uniform_R[rows].unsqueeze(1) * share_rJ.sum(dim=1, keepdim=True)
    )
    token_R[rows] = ids_rJ.gather(1, drawn_r1).squeeze(1)
    log_mass_R[rows] = (share_rJ.sum(dim=1) / total_r1.squeeze(1)).log()
    return {row: ids_rJ[i][kept_rJ[i]] for i, row in enumerate(settings.truncated)}
