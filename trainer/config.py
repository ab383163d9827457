"""The sections of a recipe that one training process needs. Pure data: neither torch nor ray."""

from dataclasses import dataclass, field
from typing import Literal

from comms.config import CommsConfig
from offload.config import OffloadConfig
from parallel.config import ParallelConfig
from trainer.checkpoint.config import CheckpointConfig
from trainer.combinations import activation_problem, optimizer_problem
from trainer.data.config import DataConfig
from trainer.islands.rules import problem_of as islands_problem
from trainer.keeping.config import KeepingConfig
from trainer.keeping.rules import problem_of as keeping_problem
from trainer.model.config import ModelConfig
from trainer.numeric.config import NumericConfig
from trainer.numeric.rules import problem_of as numeric_problem
from trainer.rl.config import RlConfig, RolloutConfig
from trainer.rl.rules import Around, rewards_problem


def _positive(section: str, **values: float) -> None:
    for name, value in values.items():
        if value <= 0:
            raise ValueError(f"{section}.{name} must be positive, got {value}")


def _fraction(section: str, **values: float) -> None:
    for name, value in values.items():
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"{section}.{name} must lie in [0, 1], got {value}")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Identity of a run, and whether it goes on from an earlier one."""

    name: str = ""
    """Folder of the run under `dir`; empty takes the recipe file's name."""

    project: str = "braid"
    """Label on exported metrics."""

    seed: int = 0
    """Seed of weights, data order and every random choice."""

    dir: str = "runs"
    """Where run folders are kept; all hosts must see the same folder."""

    resume: str = "auto"
    """`auto` goes on if there is a checkpoint, `never` refuses a used run folder, `must` refuses a
    fresh one, a path starts this run from that run folder or checkpoint. A path into this run's own
    folder goes back to it at every start; leave it out again once that is done."""

    sample_prompt: str = ""
    """Text that the newest weights continue on screen once `braid run` is done; empty for none."""

    def __post_init__(self) -> None:
        if "/" in self.name or self.name in (".", ".."):
            raise ValueError(
                f"run.name={self.name!r} names a folder under run.dir and must not be a path; set "
                "run.dir for the place"
            )


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How long, with how many tokens a step, in which precision."""

    steps: int = 100
    """Optimizer steps of the whole run."""

    global_batch_tokens: int = 8192
    """Tokens per optimizer step over all ranks, all islands together; a multiple of
    data.seq_len."""

    global_batch_sequences: int = 0
    """Sequences per optimizer step, all islands together, whatever their lengths, in place of
    global_batch_tokens; 0 goes by tokens."""

    max_tokens_per_device: int = 2048
    """Tokens one rank may hold in a forward and backward; rounds are derived from it."""

    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of forward and backward; `auto` is bf16 on CUDA and fp32 on CPU. Master weights
    and optimizer states are fp32."""

    compile: bool = False
    """Whether decoder blocks are compiled."""

    recompute: bool = False
    """Whether decoder blocks are recomputed in backward instead of kept."""

    max_skipped_steps: int = 10
    """Steps with wrong loss or gradients that may be skipped in a row (numeric.on_nan,
    numeric.on_spike)."""

    def __post_init__(self) -> None:
        _positive(
            "train",
            steps=self.steps,
            global_batch_tokens=self.global_batch_tokens,
            max_tokens_per_device=self.max_tokens_per_device,
        )
        if self.global_batch_sequences < 0:
            raise ValueError(
                "train.global_batch_sequences must not be negative, got "
                f"{self.global_batch_sequences}; 0 goes by global_batch_tokens"
            )


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW (arXiv 1711.05101), or SGD with momentum."""

    name: Literal["adamw", "sgd"] = "adamw"
    """`sgd` is what `comms.replica.method: dgc` needs."""

    lr: float = 1e-3
    """Peak learning rate; `sgd` wants one some hundred times larger than `adamw`."""

    betas: tuple[float, float] = (0.9, 0.95)
    """adamw: decay of the first and second moment."""

    eps: float = 1e-8
    """adamw: added to the root of the second moment."""

    momentum: float = 0.9
    """sgd: share of the last update direction that goes on."""

    nesterov: bool = False
    """sgd: whether momentum is Nesterov's."""

    weight_decay: float | None = None
    """Decay of matrices; vectors are not decayed. `adamw` decouples it from gradients, `sgd` adds
    it to them. null is 0.1 for `adamw` and 1e-4 for `sgd`."""

    max_grad_norm: float = 1.0
    """Gradients are scaled down to this global norm."""

    @property
    def decay(self) -> float:
        """`weight_decay`, null resolved."""
        if self.weight_decay is not None:
            return self.weight_decay
        return 0.1 if self.name == "adamw" else 1e-4

    def __post_init__(self) -> None:
        _positive("optim", lr=self.lr, eps=self.eps, max_grad_norm=self.max_grad_norm)
        for beta in self.betas:
            if not 0.0 <= beta < 1.0:
                raise ValueError(f"optim.betas must lie in [0, 1), got {self.betas}")
        if not 0.0 <= self.momentum < 1.0:
            raise ValueError(f"optim.momentum must lie in [0, 1), got {self.momentum}")
        if self.nesterov and not self.momentum:
            raise ValueError("optim.nesterov needs momentum, but optim.momentum=0; 0.9 is usual")
        if self.weight_decay is not None and self.weight_decay < 0:
            raise ValueError(f"optim.weight_decay must not be negative, got {self.weight_decay}")


@dataclass(frozen=True, kw_only=True)
class SchedConfig:
    """Learning rate over steps."""

    name: Literal["cosine", "wsd", "constant"] = "cosine"
    """`cosine` decays from the peak to the end; `wsd` (warm-up, stable, decay) stays at the peak
    and decays linearly at the end; `constant` stays."""

    warmup_steps: int = 10
    """Steps of linear rise from zero. A run that is shorter ends while still rising."""

    min_lr_ratio: float = 0.1
    """cosine, wsd: last learning rate over the peak."""

    decay_fraction: float = 0.2
    """wsd: share of the steps in the final decay."""

    def __post_init__(self) -> None:
        if self.warmup_steps < 0:
            raise ValueError(f"sched.warmup_steps must not be negative, got {self.warmup_steps}")
        _fraction("sched", min_lr_ratio=self.min_lr_ratio, decay_fraction=self.decay_fraction)


@dataclass(frozen=True, kw_only=True)
class JobConfig:
    """All that a training process is told."""

    run: RunConfig = field(default_factory=RunConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    sched: SchedConfig = field(default_factory=SchedConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    offload: OffloadConfig = field(default_factory=OffloadConfig)
    keep: KeepingConfig = field(default_factory=KeepingConfig)
    numeric: NumericConfig = field(default_factory=NumericConfig)
    comms: CommsConfig = field(default_factory=CommsConfig)
    rl: RlConfig = field(default_factory=RlConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)

    def __post_init__(self) -> None:
        self._batch_rule()
        self._context_rule()
        self._scratch_rule()
        self._combination_rule()
        self._island_rule()
        self._fault_rule()
        self._reward_rule()

    def _combination_rule(self) -> None:
        train = self.train
        self._refuse(
            activation_problem(
                self.offload.activations, recompute=train.recompute, compiled=train.compile
            )
            or optimizer_problem(
                self.optim.name,
                self.optim.momentum,
                placement=self.offload.optimizer,
                method=self.comms.replica.method,
            )
        )

    def _scratch_rule(self) -> None:
        for folder in self.offload.disks:
            if not folder.startswith(("/", "~")):
                raise ValueError(
                    f"offload.disk={folder!r} is relative, and ranks start in folders of their "
                    "own; write it as an absolute path on a local disk of every host"
                )

    def _batch_rule(self) -> None:
        seq_len, batch = self.data.seq_len, self.train.global_batch_tokens
        if not self.train.global_batch_sequences and batch % seq_len:
            low = max(batch // seq_len, 1) * seq_len
            raise ValueError(
                f"train.global_batch_tokens={batch} is not a multiple of data.seq_len={seq_len}; "
                f"choose {low} or {low + seq_len}"
            )
        # How many ranks `auto` may group is known only when they have met.
        together = self.parallel.sp
        room = self.train.max_tokens_per_device
        if together != "auto" and together > 1:
            room = room // 2 * 2 * together  # ranks that share hold even numbers of tokens
        if together != "auto" and room < seq_len:
            per_rank = seq_len if together == 1 else -(-seq_len // (2 * together)) * 2
            longer = "" if together == 1 else f" over the {together} ranks of parallel.sp"
            raise ValueError(
                f"train.max_tokens_per_device={self.train.max_tokens_per_device} is less than one "
                f"sequence of data.seq_len={seq_len}{longer}; raise it to at least {per_rank}, "
                "shorten the sequence, or let more ranks hold one (parallel.sp)"
            )

    def _island_rule(self) -> None:
        by_count = self.train.global_batch_sequences
        self._refuse(
            islands_problem(
                self.comms.island,
                islands=self.parallel.island,
                sequences=by_count or self.train.global_batch_tokens // self.data.seq_len,
                unit=1 if by_count else self.data.seq_len,
                key="train.global_batch_sequences" if by_count else "train.global_batch_tokens",
            )
        )

    def _fault_rule(self) -> None:
        self._refuse(
            numeric_problem(
                self.numeric,
                self.checkpoint,
                islands=self.parallel.island,
                compression=self.comms.replica.method,
                rebalance_interval_steps=self.parallel.rebalance_interval_steps,
                by_rewards=self.rl.enabled,
            )
            or keeping_problem(self.keep, islands=self.parallel.island)
        )

    def _reward_rule(self) -> None:
        around = Around(
            steps=self.train.steps,
            max_tokens_per_device=self.train.max_tokens_per_device,
            max_context_tokens=None if self.model.path else self.model.max_context_tokens,
            data=self.data,
            parallel=self.parallel,
        )
        self._refuse(rewards_problem(self.rl, self.rollout, around))

    def _refuse(self, problem: str | None) -> None:
        if problem is not None:
            raise ValueError(problem)

    def _context_rule(self) -> None:
        if self.model.path is None and self.data.seq_len > self.model.max_context_tokens:
            raise ValueError(
                f"data.seq_len={self.data.seq_len} is longer than model.max_context_tokens="
                f"{self.model.max_context_tokens}; raise the latter or shorten the sequence"
            )
