"""Learning by rewards, as the recipe says it. Pure data: neither torch nor ray."""

from dataclasses import dataclass, field
from typing import Literal

from trainer.rl.engine.config import EngineConfig
from trainer.rl.objectives.config import ObjectiveConfig
from trainer.rl.rewards.config import RewardConfig
from trainer.rl.tasks.config import TaskConfig


@dataclass(frozen=True, kw_only=True)
class RlConfig:
    """What a policy is asked, how answers are judged and how it learns from them."""

    enabled: bool = False
    """Whether the run learns by rewards; without, nothing of `rl` and `rollout` acts."""

    supervised_steps: int = 0
    """The first steps of train.steps, trained on `data` as usual; the others learn by rewards."""

    lr: float | None = None
    """Learning rate of the first step by rewards; null goes on with optim and sched."""

    final_lr_ratio: float = 1.0
    """Learning rate of the last step over `lr`; in between it falls linearly. Rewards are noisy:
    what a constant rate learns last is lost in its noise."""

    prompts_per_step: int = 16
    """Prompts that one step trains, over all ranks."""

    samples_per_prompt: int = 8
    """Answers sampled to each prompt: a group, within which rewards are compared."""

    max_staleness: int = 1
    """Most updates between the oldest token of an answer and the step that trains it; 0 samples and
    trains in turns."""

    max_prompt_tokens: int = 512
    """Longest prompt accepted."""

    dynamic_sampling: bool = True
    """Whether groups whose rewards are all equal are replaced by others before a step is trained
    (DAPO, arXiv 2503.14476); otherwise they are part of it and teach nothing."""

    overlong_tokens: int = 0
    """The last tokens before rollout.max_new_tokens over which a penalty grows from 0 to 1; 0 for
    none."""

    reference: str = ""
    """Run, checkpoint or model folder of the reference model; empty takes the weights with which
    learning by rewards began. Read only where the objective compares with one."""

    lease_s: float = 600.0
    """A prompt whose worker has said nothing for so long goes to another one."""

    publish_within_s: float = 60.0
    """Longest time in which new weights reach all workers; who fails is named and replaced."""

    resize: Literal["off", "advise", "apply"] = "advise"
    """Whether the split of places between training and sampling is judged from measured times:
    `advise` says how another would do, `apply` also changes it, between two steps, where that gains
    a tenth of a step."""

    task: TaskConfig = field(default_factory=TaskConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)

    def __post_init__(self) -> None:
        for name in (
            "prompts_per_step",
            "samples_per_prompt",
            "max_prompt_tokens",
            "lease_s",
            "publish_within_s",
        ):
            if not getattr(self, name) > 0:
                raise ValueError(f"rl.{name}={getattr(self, name)} must be positive")
        for name in ("supervised_steps", "max_staleness", "overlong_tokens"):
            if getattr(self, name) < 0:
                raise ValueError(f"rl.{name}={getattr(self, name)} must not be negative")
        if self.lr is not None and not self.lr > 0.0:
            raise ValueError(f"rl.lr={self.lr} must be positive, or null to follow sched")
        if not 0.0 <= self.final_lr_ratio <= 1.0:
            raise ValueError(f"rl.final_lr_ratio={self.final_lr_ratio} must lie in [0, 1]")
        if self.samples_per_prompt < 2:
            raise ValueError(
                f"rl.samples_per_prompt={self.samples_per_prompt} leaves nothing to compare an "
                "answer with; choose at least 2"
            )


@dataclass(frozen=True, kw_only=True)
class RolloutConfig:
    """The workers that sample, and how they draw."""

    workers: int = 1
    """Processes with resources of their own."""

    colocated_workers: int = 0
    """Processes that share the resources of the ranks that train, one rank's each."""

    spare_workers: int = 0
    """Processes beyond `workers` for which rl.resize=apply may take room that is free on the
    cluster, as long as sampling is the slower side."""

    cpus_per_worker: float = 1.0
    """CPU cores reserved for each of `workers`, which is also its number of compute threads."""

    gpus_per_worker: float = 0.0
    """GPUs reserved for each: 0 samples on the CPU, 1 on CUDA."""

    memory_per_worker_gib: float = 0.0
    """Host memory reserved for each; 0 reserves none."""

    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of weights and arithmetic; `auto` is bf16 on CUDA and fp32 on CPU."""

    on_update: Literal["in_flight", "drain"] = "in_flight"
    """Whether answers under way go on with new weights from their next token on, or are finished
    first."""

    prompts_per_worker: int = 16
    """Most prompts that one worker answers at a time."""

    max_restarts: int = 10
    """Workers that may be lost in the whole run; one more ends it."""

    max_new_tokens: int = 256
    """Longest answer."""

    temperature: float = 1.0
    """Divides the logits."""

    top_k: int = 0
    """Keeps the k likeliest tokens; 0 keeps all."""

    top_p: float = 1.0
    """Then keeps the fewest likeliest ones that hold this probability."""

    stop: tuple[str, ...] = ()
    """Texts that end an answer, and belong to it; the tokenizer's end token always does."""

    engine: EngineConfig = field(default_factory=EngineConfig)

    def __post_init__(self) -> None:
        for name in ("prompts_per_worker", "max_new_tokens", "temperature"):
            if not getattr(self, name) > 0:
                raise ValueError(f"rollout.{name}={getattr(self, name)} must be positive")
        for name in ("workers", "colocated_workers", "spare_workers", "max_restarts", "top_k"):
            if getattr(self, name) < 0:
                raise ValueError(f"rollout.{name}={getattr(self, name)} must not be negative")
        for name in ("cpus_per_worker", "gpus_per_worker", "memory_per_worker_gib"):
            if not getattr(self, name) >= 0.0:
                raise ValueError(f"rollout.{name}={getattr(self, name)} must not be negative")
        if not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"rollout.top_p={self.top_p} must lie in (0, 1]")
        if self.workers + self.colocated_workers < 1:
            raise ValueError(
                "rollout.workers=0 and rollout.colocated_workers=0 leave nobody to sample; set one "
                "of them to at least 1"
            )
        if any(not text for text in self.stop):
            raise ValueError("rollout.stop has an empty text, which would end every answer")
