"""Which objective a policy is trained with. Pure data: neither torch nor ray."""

from dataclasses import dataclass
from math import inf
from typing import Literal

Kind = Literal[
    "grpo", "dr_grpo", "dapo", "gspo", "cispo", "aipo", "decoupled_ppo", "seed_grpo", "rso", "dpo"
]
Normalisation = Literal["token", "sequence", "constant"]
AdvantageKind = Literal["standardised", "centred", "entropy_scaled"]
KlEstimator = Literal["k1", "k2", "k3"]


@dataclass(frozen=True)
class Published:
    """What the source of an objective uses where the recipe leaves a choice open."""

    normalisation: Normalisation
    advantage: AdvantageKind
    clip_low: float
    clip_high: float
    weight_cap: float


PUBLISHED: dict[str, Published] = {
    "grpo": Published("sequence", "standardised", 0.2, 0.2, inf),
    "dr_grpo": Published("constant", "centred", 0.2, 0.2, inf),
    "dapo": Published("token", "standardised", 0.2, 0.28, inf),
    "gspo": Published("sequence", "standardised", 3e-4, 4e-4, inf),
    "cispo": Published("token", "standardised", 1.0, 4.0, inf),
    "aipo": Published("token", "centred", 0.2, 0.2, 4.0),
    "decoupled_ppo": Published("token", "standardised", 0.2, 0.2, 5.0),
    "seed_grpo": Published("constant", "entropy_scaled", 0.2, 0.2, inf),
}
"""A clip_low of 1 is none: a ratio is never below 0."""

PREFERENCE_KINDS = ("rso", "dpo")


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """The loss of a reinforcement or preference run. None: as in the objective's source."""

    kind: Kind = "grpo"
    """Objective; `rso` and `dpo` learn from preference pairs, the others from rewards."""

    normalisation: Normalisation | None = None
    """What a token's loss is divided by: all trained tokens of the step (`token`), its sequence's
    tokens times the number of sequences (`sequence`), or max_response_tokens times the number of
    sequences (`constant`)."""

    advantage: AdvantageKind | None = None
    """Reward minus the group's mean, divided by the group's standard deviation (`standardised`), as
    it is (`centred`), or scaled down where the group's answers disagree (`entropy_scaled`)."""

    clip_low: float | None = None
    """Ratios below 1 - clip_low are clipped."""

    clip_high: float | None = None
    """Ratios above 1 + clip_high are clipped."""

    dual_clip: float | None = None
    """Largest ratio counted for a negative advantage (arXiv 1912.09729); none if not set."""

    weight_cap: float | None = None
    """aipo, decoupled_ppo: bound of the weight that corrects for sampling by older weights."""

    over_cap: Literal["clamp", "reject"] = "clamp"
    """decoupled_ppo: a weight over weight_cap is set to it, or its token is left out."""

    kl_coefficient: float = 0.0
    """Weight of the distance to the reference model; 0 needs no reference."""

    kl_estimator: KlEstimator = "k3"
    """Estimator of that distance, see trainer/rl/objectives/divergence.py."""

    entropy_scale: float = 1.0
    """seed_grpo: how strongly disagreement lowers the advantage; 0 not at all."""

    entropy_shape: Literal["linear", "exponential", "focal"] = "linear"
    """seed_grpo: form of that dependence."""

    beta: float = 0.1
    """dpo, rso: inverse strength of the pull towards the reference."""

    preference_loss: Literal["sigmoid", "hinge"] = "sigmoid"
    """dpo, rso: logistic or hinge loss of the margin."""

    def __post_init__(self) -> None:
        for name in ("clip_low", "clip_high", "dual_clip", "weight_cap", "beta"):
            value = getattr(self, name)
            if value is not None and not value > 0.0:
                raise ValueError(f"rl.objective.{name}={value} must be positive")
        for name in ("kl_coefficient", "entropy_scale"):
            value = getattr(self, name)
            if not value >= 0.0:
                raise ValueError(f"rl.objective.{name}={value} must not be negative")
        if self.clip_low is not None and self.clip_low > 1.0:
            raise ValueError(
                f"rl.objective.clip_low={self.clip_low} is more than 1, but ratios end at 0; set 1 "
                "to clip nothing below"
            )
        if self.dual_clip is not None and self.dual_clip <= 1.0:
            raise ValueError(f"rl.objective.dual_clip={self.dual_clip} must be above 1, such as 3")
        if self.entropy_shape == "linear" and self.entropy_scale > 1.0:
            raise ValueError(
                f"rl.objective.entropy_scale={self.entropy_scale} with a linear shape turns "
                "advantages round; choose at most 1, or entropy_shape: exponential"
            )

    @property
    def learns_from_pairs(self) -> bool:
        """Whether the objective needs preference pairs rather than rewards."""
        return self.kind in PREFERENCE_KINDS

    def resolved(self) -> Published:
        """The choices in force: the recipe's, or else the source's. For objectives of rewards."""
        if self.learns_from_pairs:
            raise ValueError(
                f"rl.objective.kind={self.kind} has no ratios to clip; it learns from pairs"
            )
        source = PUBLISHED[self.kind]
        return Published(
            normalisation=self.normalisation or source.normalisation,
            advantage=self.advantage or source.advantage,
            clip_low=source.clip_low if self.clip_low is None else self.clip_low,
            clip_high=source.clip_high if self.clip_high is None else self.clip_high,
            weight_cap=source.weight_cap if self.weight_cap is None else self.weight_cap,
        )
