"""The rollout engine: answers to many prompts at once, on one device.

    engine = Engine(model, EngineConfig())
    engine.submit(Request(id="a", prompt=(1, 2, 3), seeds=(0, 1)))
    while not engine.idle:
        answers += engine.step().finished

R rows whose next token is wanted.

Guarantees, asserted in tests/trainer/rl/engine: test_engine.py, the last in test_loading.py:
- the random numbers of an answer depend on its seed alone, bitwise; its logits depend on what else
  is computed by rounding only (1e-5 of their size in fp32), so that its tokens are those it gets
  alone, save where a draw falls within that of a boundary;
- that holds for answers that were cut off, preempted, drafted for or begun elsewhere;
- log-probabilities are those of an uncached forward over prompt and answer;
- every token has the version of the weights that drew it; new weights drop nothing.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from trainer.errors import NumericError
from trainer.model.decoder import Decoder
from trainer.rl.engine.blocks import block_bytes
from trainer.rl.engine.config import EngineConfig
from trainer.rl.engine.drafts import Acceptance, CopyIndex, StepTimes
from trainer.rl.engine.forward import Forward, RoutingRecorder, wanted_rows
from trainer.rl.engine.kv import KvMemory
from trainer.rl.engine.loading import load_weights
from trainer.rl.engine.randomness import uniforms
from trainer.rl.engine.request import Answer, Drawn, EngineStats, Request, Step
from trainer.rl.engine.sampling import Draws, draw, settings_of
from trainer.rl.engine.scheduler import Scheduler, Speculation, Work
from trainer.rl.engine.sequence import Group, Sequence


class Engine:
    """A `RolloutEngine` on a whole decoder, which it changes only in `load`."""

    def __init__(
        self, model: Decoder, config: EngineConfig, *, clock: Callable[[], float] = perf_counter
    ) -> None:
        """`clock` gives seconds, by which drafts are made longer or shorter."""
        parameter = next(model.parameters())
        self._model, self._config, self._clock = model, config, clock
        num_blocks = _num_blocks(model, config, parameter.element_size())
        self._memory = KvMemory(
            model.architecture,
            num_blocks,
            config.block_tokens,
            dtype=parameter.dtype,
            device=parameter.device,
        )
        self._forward = Forward(model, self._memory, config.block_tokens)
        self._scheduler = Scheduler(config, num_blocks)
        records = config.record_routing and model.mixtures
        self._routing = RoutingRecorder(model) if records else None
        self._groups: dict[str, Group] = {}
        self._acceptance, self._times = Acceptance(), StepTimes()
        self._stats = EngineStats()
        self._arrivals = self._loads = 0

    @property
    def idle(self) -> bool:
        """Whether nothing is asked for."""
        return not self._groups

    @property
    def longest_tokens(self) -> int:
        """Prompt and answer together that fit at all."""
        architecture = self._model.architecture
        room = self._scheduler.pool.num_blocks * self._config.block_tokens
        scaling = architecture.rope_scaling
        if scaling is not None and scaling.kind == "dynamic":
            room = min(room, scaling.original_context_tokens)
        return min(room, architecture.max_context_tokens)

    def submit(self, request: Request) -> None:
        """Ask for answers; they begin in the order of submission."""
        if request.id in self._groups:
            raise ValueError(f"request {request.id!r} is under way already; choose another id")
        needed = len(request.prompt) + request.sampling.max_new_tokens
        if needed > self.longest_tokens:
            raise ValueError(
                f"request {request.id!r} has {len(request.prompt)} prompt tokens and may draw "
                f"{request.sampling.max_new_tokens}, and {self.longest_tokens} fit together; "
                "shorten the prompt, lower max_new_tokens, or raise kv_bytes or the model's "
                "max_context_tokens, whichever is the limit"
            )
        _check_tokens(request, self._model.architecture.vocab_size)
        self._forward.reach(needed)
        group = Group(request)
        if self._config.max_draft_tokens:
            group.copies = CopyIndex(self._config.draft_match_tokens)
            group.copies.add(list(request.prompt), 0)
        for sample in range(len(request.seeds)):
            sequence = Sequence(group, sample, self._arrivals)
            if group.copies is not None:
                group.copies.add(sequence.tokens, sequence.prompt_tokens)
            self._arrivals += 1
            group.unfinished.append(sequence)
            self._scheduler.add(sequence)
        self._groups[request.id] = group

    @torch.inference_mode()
    def step(self) -> Step:
        """One forward for all that is under way, and a token for each answer whose turn it is.

        Raises NumericError where the model gives no finite scores. Nothing is drawn then, and what
        is under way is computed anew in the next step, as it may be with other weights.
        """
        works, copies = self._scheduler.plan(self._loads, self._speculation())
        if not works:
            return Step(drawn=[], finished=[])
        begun_s = self._clock()
        stored_before = [work.sequence.stored for work in works]
        self._memory.copy(copies)
        logits_RV = self._forward(works, wanted_rows(works))
        drawing = [work for work in works if work.draws]
        draws = self._draw(drawing, logits_RV) if drawing else None
        rows = sum(work.total_rows for work in works)
        self._times.observe(rows, self._clock() - begun_s)
        self._stats.steps += 1
        self._stats.forward_tokens += rows
        for work in works:
            work.sequence.stored += work.rows
        drawn = [] if draws is None else self._take(drawing, draws)
        self._note_routing(works, stored_before)
        ended = [work.sequence for work in drawing if work.sequence.answer.reason != "running"]
        return Step(drawn=drawn, finished=[self._end(sequence) for sequence in ended])

    def cancel(self, request_id: str) -> list[Answer]:
        """Give up a request; its unfinished answers as far as they are, none for an unknown id."""
        group = self._groups.get(request_id)
        sequences = [] if group is None else list(group.unfinished)
        for sequence in sequences:
            sequence.answer.reason = "cancelled"
        return [self._end(sequence) for sequence in sequences]

    def unfinished(self) -> list[Answer]:
        """Copies of all answers that are waiting or under way."""
        groups = self._groups.values()
        return [sequence.answer.copied() for group in groups for sequence in group.unfinished]

    def load(self, version: int, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Take the weights of `version`, named as in the decoder's state_dict.

        Answers under way go on with them, on the keys and values that they have or on new ones, as
        the configuration says; those without a token of their own always on new ones. Raises
        ValueError, with the old weights in use, unless all are given once.
        """
        load_weights(self._model, tensors)
        self._stats.version = version
        self._loads += 1
        self._scheduler.restart(all_of_them=self._config.on_new_weights == "recompute")

    def stats(self) -> EngineStats:
        """Counts so far, and what is held now."""
        scheduler = self._scheduler
        return replace(
            self._stats,
            preemptions=scheduler.preemptions,
            copied_blocks=scheduler.copied_blocks,
            running=len(scheduler.running),
            waiting=len(scheduler.waiting),
            blocks=scheduler.pool.num_blocks,
            free_blocks=scheduler.pool.num_free,
        )

    def _speculation(self) -> Speculation | None:
        if not self._config.max_draft_tokens:
            return None
        fixed_s, row_s = self._times.fitted()
        return Speculation(
            longest=self._config.max_draft_tokens,
            acceptance=self._acceptance.share,
            fixed_s=fixed_s,
            row_s=row_s,
        )

    def _draw(self, drawing: list[Work], logits_RV: Tensor) -> Draws:
        seeds, places, samplings = [], [], []
        for work in drawing:
            answer = work.sequence.answer
            for ahead in range(1 + len(work.draft)):
                seeds.append(answer.seed)
                places.append(len(answer.tokens) + ahead)
                samplings.append(work.sequence.sampling)
        uniform_R = torch.from_numpy(uniforms(np.array(seeds), np.array(places)))
        uniform_R = uniform_R.to(logits_RV.device, non_blocking=True)
        draws = draw(logits_RV, uniform_R, settings_of(samplings, logits_RV.device))
        if not all(map(math.isfinite, draws.model_logprobs)):
            self._start_anew()
            raise NumericError(
                f"the model's scores are not finite with weights of version {self._stats.version}; "
                "load the weights of an earlier version"
            )
        return draws

    def _start_anew(self) -> None:
        """Let go of all keys and values, finite or not."""
        self._scheduler.restart(all_of_them=True)
        self._memory.clear()
        if self._routing is not None:
            self._routing.clear()

    def _take(self, drawing: list[Work], draws: Draws) -> list[Drawn]:
        """Append the drawn tokens to their answers, as far as the drafts held."""
        drawn, row = [], 0
        for work in drawing:
            answer, known = work.sequence.answer, len(work.sequence.tokens)
            for ahead in range(1 + len(work.draft)):
                self._record(answer, draws, row + ahead)
                token = draws.tokens[row + ahead]
                answer.reason = work.sequence.append(token)
                drawn.append(Drawn(request_id=answer.request_id, sample=answer.sample, token=token))
                held = ahead < len(work.draft) and token == work.draft[ahead]
                if not held or answer.reason != "running":
                    break
                work.sequence.stored += 1
            if work.sequence.group.copies is not None:
                self._learn(work, known)
            row += 1 + len(work.draft)
        self._stats.drawn_tokens += len(drawn)
        return drawn

    def _record(self, answer: Answer, draws: Draws, row: int) -> None:
        answer.logprobs.append(draws.logprobs[row])
        answer.model_logprobs.append(draws.model_logprobs[row])
        answer.kept_log_mass.append(draws.kept_log_mass[row])
        answer.versions.append(self._stats.version)
        if self._config.record_masks:
            kept = draws.kept_ids.get(row)
            answer.kept_ids.append(None if kept is None else kept.to(torch.int32).cpu().numpy())

    def _learn(self, work: Work, known: int) -> None:
        """Learn from the tokens drawn from place `known` on."""
        sequence, copies = work.sequence, work.sequence.group.copies
        assert copies is not None
        copies.add(sequence.tokens, known)
        new = sequence.tokens[known:]
        # Without a draft the guess costs nothing to compare, so that acceptance is known even
        # while it is too low to draft.
        guesses = work.draft or work.guess
        tried = min(len(new), len(guesses))
        held = sum(a == b for a, b in zip(new[:tried], guesses[:tried], strict=True))
        self._acceptance.observe(held, tried)
        self._stats.draft_tokens += len(work.draft)
        self._stats.accepted_draft_tokens += held if work.draft else 0

    def _note_routing(self, works: list[Work], stored_before: list[int]) -> None:
        if self._routing is None:
            return
        pieces = self._routing.take([work.total_rows for work in works])
        for work, piece, before in zip(works, pieces, stored_before, strict=True):
            # Rows of drafts that did not hold are of no token.
            work.sequence.routes.append(piece[: work.sequence.stored - before])

    def _end(self, sequence: Sequence) -> Answer:
        answer, group = sequence.answer, sequence.group
        answer.routing = sequence.routing()
        self._scheduler.remove(sequence)
        group.unfinished.remove(sequence)
        if not group.unfinished:
            del self._groups[answer.request_id]
        return answer


def _num_blocks(model: Decoder, config: EngineConfig, element_bytes: int) -> int:
    each = block_bytes(model.architecture, config.block_tokens, element_bytes)
    if config.kv_bytes < each:
        raise ValueError(
            f"kv_bytes={config.kv_bytes} is less than one block of {config.block_tokens} tokens, "
            f"which is {each} bytes; raise it"
        )
    return config.kv_bytes // each


def _check_tokens(request: Request, vocab_size: int) -> None:
    tokens = [*request.prompt, *(token for begun in request.started for token in begun)]
    if min(tokens) < 0 or max(tokens) >= vocab_size:
        wrong = next(token for token in tokens if not 0 <= token < vocab_size)
        raise ValueError(
            f"request {request.id!r} has token {wrong}, and the model knows 0 to {vocab_size - 1}; "
            "encode the prompt with the model's own tokenizer"
        )
