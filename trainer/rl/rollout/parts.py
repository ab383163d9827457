"""What a worker is made of, from the sections of a recipe."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

from comms.weights.plan import Part
from parallel.config import ParallelConfig
from trainer.config import RunConfig, TrainConfig
from trainer.data.tokenizer import TOKENIZER_FILE, Tokenizer
from trainer.errors import RecipeError
from trainer.model.config import Architecture, ModelConfig
from trainer.model.decoder import Decoder
from trainer.model.resolve import resolve_architecture
from trainer.rl.config import RlConfig, RolloutConfig
from trainer.rl.engine.engine import Engine
from trainer.rl.engine.request import Sampling
from trainer.rl.rollout.reference import (
    ReferenceModel,
    keep_reference,
    load_kept_reference,
    load_named_reference,
)
from trainer.rl.rollout.rules import AnswerRules
from trainer.rl.rollout.weights import compute_dtype, empty_decoder, taken_parts
from trainer.rl.tasks.build import build_task
from trainer.rl.tasks.codec import PlainCodec
from trainer.rl.tasks.prompts import PromptBook
from trainer.run_folder import RunFolder

_LOOK_S = 0.1


class RunSections(Protocol):
    """What is read of a `JobConfig`."""

    @property
    def run(self) -> RunConfig:
        """The section."""

    @property
    def model(self) -> ModelConfig:
        """The section."""

    @property
    def train(self) -> TrainConfig:
        """The section."""

    @property
    def parallel(self) -> ParallelConfig:
        """The section."""

    @property
    def rl(self) -> RlConfig:
        """The section."""

    @property
    def rollout(self) -> RolloutConfig:
        """The section."""


class KeptReference:
    """The reference model of a run, filled before the first answer needs it."""

    def __init__(self, policy: Decoder, reference: Decoder, folder: RunFolder, named: str) -> None:
        """`named` is the recipe's folder; empty for the weights with which learning began."""
        self.model = ReferenceModel(reference)
        self._policy, self._reference, self._folder = policy, reference, folder
        self._named = named
        self._filled = False

    def prepare(self) -> None:
        """Read the folder that is named, where one is and was not read yet; it may take long, and
        channels for weights go on meanwhile. Raises RecipeError or DataError where it is no good.
        """
        if self._named and not self._filled:
            load_named_reference(self._reference, self._named)
            self._filled = True

    def settle(self, version: int) -> None:
        """Fill it, once the policy has the weights of `version`.

        Raises RecipeError where the weights with which learning by rewards began are gone.
        """
        if self._filled:
            return
        if not load_kept_reference(self._reference, self._folder):
            if version != 0:
                raise RecipeError(
                    f"the run learned by rewards up to version {version} without keeping the "
                    "weights with which that began, to which rl.objective compares; name a "
                    "folder in rl.reference"
                )
            self._reference.load_state_dict(self._policy.state_dict())
            keep_reference(self._reference, self._folder)
        self._filled = True


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Of one worker."""

    engine: Engine
    rules: AnswerRules
    takes: Mapping[str, Part]
    """Of a channel for weights."""

    reference: KeptReference | None
    host: str
    publish_within_s: float
    drains: bool
    """Whether prompts under way are finished before new weights are loaded."""


def build_parts(
    job: RunSections, *, host: str, device: torch.device, should_stop: Callable[[], bool]
) -> Parts | None:
    """An engine without weights, and what it is asked by; None where it should stop before.

    Raises RecipeError or DataError where sections do not fit each other.
    """
    folder = RunFolder.of(job.run)
    while not (folder.tokenizer / TOKENIZER_FILE).is_file():
        if should_stop():
            return None
        time.sleep(_LOOK_S)
    tokenizer = Tokenizer.load(folder.tokenizer)
    architecture = resolve_architecture(job.model, tokenizer.vocab_size)
    dtype = compute_dtype(job.rollout.precision, device)
    model = empty_decoder(architecture, dtype=dtype, device=device)
    engine = Engine(model, job.rollout.engine)
    reference = None
    objective = job.rl.objective
    if objective.kl_coefficient > 0.0 or objective.learns_from_pairs:
        second = empty_decoder(architecture, dtype=dtype, device=device)
        reference = KeptReference(model, second, folder, job.rl.reference)
    return Parts(
        engine=engine,
        rules=_rules(job, tokenizer, architecture, engine, reference),
        takes=taken_parts(model),
        reference=reference,
        host=host,
        publish_within_s=job.rl.publish_within_s,
        drains=job.rollout.on_update == "drain",
    )


def _rules(
    job: RunSections,
    tokenizer: Tokenizer,
    architecture: Architecture,
    engine: Engine,
    reference: KeptReference | None,
) -> AnswerRules:
    codec = PlainCodec(tokenizer)
    task = build_task(job.rl.task, seed=job.run.seed)
    book = PromptBook(task, codec, max_prompt_tokens=job.rl.max_prompt_tokens)
    # A question that nobody can answer should end the run before others are paid for.
    book.verify()
    return AnswerRules(
        task_config=job.rl.task,
        task=task,
        codec=codec,
        book=book,
        samples=job.rl.samples_per_prompt,
        seed=job.run.seed,
        sampling=_sampling(job.rollout, codec, tokenizer.eos_id),
        longest_tokens=_longest(job, engine, architecture),
        reference=None if reference is None else reference.model,
    )


def _sampling(rollout: RolloutConfig, codec: PlainCodec, eos_id: int) -> Sampling:
    return Sampling(
        max_new_tokens=rollout.max_new_tokens,
        temperature=rollout.temperature,
        top_k=rollout.top_k,
        top_p=rollout.top_p,
        stop_ids=(eos_id,),
        stop_sequences=tuple(codec.encode(text) for text in rollout.stop),
    )


def _longest(job: RunSections, engine: Engine, architecture: Architecture) -> int:
    """Tokens of an episode that fit here and where it is trained, a pair on one rank."""
    longest, together = engine.longest_tokens, job.parallel.sp
    if together != "auto":
        room = job.train.max_tokens_per_device * together
        longest = min(longest, room // 2 if job.rl.objective.learns_from_pairs else room)
    needed = job.rl.max_prompt_tokens + job.rollout.max_new_tokens
    if needed > longest:
        raise RecipeError(
            f"rl.max_prompt_tokens={job.rl.max_prompt_tokens} and rollout.max_new_tokens="
            f"{job.rollout.max_new_tokens} make {needed} tokens, but {longest} fit: lower them, or "
            "raise what holds least of train.max_tokens_per_device="
            f"{job.train.max_tokens_per_device}, model.max_context_tokens="
            f"{architecture.max_context_tokens} and rollout.engine.kv_bytes="
            f"{job.rollout.engine.kv_bytes}"
        )
    return longest
