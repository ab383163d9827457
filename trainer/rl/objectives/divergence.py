"""Estimators of KL(policy || reference) from tokens that the policy sampled.

T tokens. With d = log policy - log reference (J. Schulman, "Approximating KL divergence", 2020):

| name | value | in value | as a loss |
|---|---|---|---|
| k1 | d | unbiased, high variance | its gradient is zero on average: a measure, not a loss |
| k2 | d^2 / 2 | biased, low variance | the gradient of KL is its gradient's mean, on policy |
| k3 | e^-d - 1 + d | unbiased, never negative | GRPO's (arXiv 2402.03300, eq. 4) |
"""

from torch import Tensor

from trainer.rl.objectives.config import KlEstimator
from trainer.rl.objectives.stream import log_ratio


def kl_estimate(
    logp_T: Tensor, reference_T: Tensor, mask_T: Tensor, estimator: KlEstimator
) -> Tensor:
    """[T]: the estimate at each token, 0 outside the mask. Gradients reach `logp_T` alone."""
    log_ratio_T = log_ratio(logp_T, reference_T.detach(), mask_T)
    if estimator == "k1":
        return log_ratio_T
    if estimator == "k2":
        return 0.5 * log_ratio_T.square()
    return (-log_ratio_T).exp() - 1.0 + log_ratio_T
