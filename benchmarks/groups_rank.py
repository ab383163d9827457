"""One rank of `groups.py`: trains every batch under each way to plan it, and times the steps."""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from comms.config import RankEnvironment
from comms.groups import join, leave
from comms.ledger import Ledger
from parallel.apply import ModelParts, parallelize
from parallel.config import ParallelConfig
from parallel.layout import Layout
from parallel.mesh import build_mesh
from parallel.pool import SequencePool, open_pool
from parallel.sequence.scheme import possible_schemes
from parallel.sequence.stretches import AttentionScheme, padding_multiple, token_ranges
from trainer.data.batch import Batch
from trainer.measure import measure_hardware
from trainer.model.config import Architecture
from trainer.model.decoder import Decoder
from trainer.model.init import init_weights
from trainer.model.packing import Sharing
from trainer.model.size import flops_per_token, parameter_count
from trainer.planner.batch import BatchArithmetic
from trainer.planner.costs import AttentionShape, ModelCost
from trainer.planner.groups import GroupPlanner
from trainer.planner.plan import Round, SequenceGroup, StepPlan, Terms

LENGTHS = Path(__file__).parent / "data" / "wikipedia_length_quantiles.csv"
RANKS, RANKS_PER_HOST = 4, 2
WARM_UP = 2
PEERS = ("ulysses_one_size", "one_size", "best_size_per_batch")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Sizes of the measurement."""

    batches: int = 10
    sequences: int = 32
    rank_tokens: int = 2048
    hidden: int = 128
    layers: int = 4
    heads: int = 8

    def to_json(self) -> str:
        """For the command line of a rank."""
        return json.dumps(asdict(self))

    @property
    def longest_tokens(self) -> int:
        """Longest sequence: what all ranks together can hold."""
        return RANKS * self.rank_tokens

    def architecture(self) -> Architecture:
        """A decoder with as many key heads as query heads."""
        return Architecture(
            vocab_size=512,
            hidden_size=self.hidden,
            num_layers=self.layers,
            num_heads=self.heads,
            num_kv_heads=self.heads,
            intermediate_size=4 * self.hidden,
            max_context_tokens=self.longest_tokens,
        )


def draw_lengths(setting: Setting, seed: int) -> list[int]:
    """Lengths of one batch, by inverting Wikipedia's quantiles."""
    quantiles, tokens = np.loadtxt(LENGTHS, delimiter=",", comments="#", skiprows=2).T
    drawn = np.random.default_rng(seed).random(setting.sequences)
    lengths = np.interp(drawn, quantiles, tokens).astype(int)
    return np.clip(lengths, 8, setting.longest_tokens).tolist()


class Trainer:
    """A sharded decoder and the planners that compete."""

    def __init__(self, rank: int, setting: Setting) -> None:
        self._rank = rank
        self._ledger = Ledger()
        layout, config = Layout(shard=RANKS), ParallelConfig(shard=RANKS)
        self._model = Decoder(setting.architecture())
        init_weights(self._model, 0)
        spread = parallelize(
            self._model,
            parts=ModelParts(blocks=list(self._model.layers)),
            meshes=build_mesh(layout, "cpu"),
            config=config,
            param_dtype=torch.float32,
            compile_blocks=False,
            ledger=self._ledger,
        )
        self._gradients = spread.gradients()
        self._optimizer = torch.optim.AdamW(self._model.parameters(), lr=1e-3, fused=True)
        self._pool = _pool(rank, layout, setting, self._ledger)
        sizes = {"auto": (1, 2, 4), "one_size": (4,), "two": (2,), "one": (1,)}
        self._planners = {n: _planner(setting, layout, s) for n, s in sizes.items()}

    def plan(self, name: str, step: int, lengths: Sequence[int]) -> StepPlan | None:
        """Rank 0's plan, told to all; None where the planner's groups cannot hold a sequence."""
        plan: list[StepPlan | None] = [None]
        if self._rank == 0 and max(lengths) <= self._planners[name].longest_tokens:
            plan[0] = self._planners[name].choose(step, lengths)
        dist.broadcast_object_list(plan, src=0)
        return plan[0]

    def step(self, plan: StepPlan, lengths: Sequence[int]) -> float:
        """Train `plan`; seconds of rank 0, all ranks beginning together."""
        batches = [self._batch(r.group_of(self._rank), lengths) for r in plan.rounds]
        dist.barrier()
        self._ledger.take()
        begin_s = time.perf_counter()
        for number, (batch, sharing) in enumerate(batches):
            self._gradients.start_round(last=number == len(batches) - 1)
            (self._model(batch, sharing).loss_sum / sum(lengths)).backward()
        self._gradients.finish()
        self._optimizer.step()
        self._gradients.zero()
        dist.barrier()
        return time.perf_counter() - begin_s

    def heads_only(self, plan: StepPlan) -> StepPlan:
        """The same groups, all of them by all-to-all (DeepSpeed-Ulysses)."""
        rounds = tuple(
            Round(
                groups=tuple(
                    replace(g, attention=AttentionScheme(ulysses=g.size)) for g in r.groups
                )
            )
            for r in plan.rounds
        )
        return replace(plan, rounds=rounds)

    def observe(self, name: str, plan: StepPlan, seconds: float) -> None:
        """Let a planner correct its rates by a step's time and waiting."""
        _, waited_s = self._ledger.take()
        if self._rank == 0:
            terms = Terms(compute_s=max(seconds - waited_s, 1e-3), communication_s=waited_s)
            self._planners[name].observe(plan, terms)

    def _batch(self, group: SequenceGroup, lengths: Sequence[int]) -> tuple[Batch, Sharing]:
        held = [lengths[i] for i in group.sequences]
        multiple = padding_multiple(group.attention)
        padding = -sum(held) % multiple or (0 if held else multiple)
        pieces = [*held, padding] if padding else held
        ends = np.cumsum(pieces).tolist()
        tokens = torch.randint(512, (ends[-1],), generator=torch.Generator().manual_seed(ends[-1]))
        whole = Batch(
            tokens_T=tokens,
            labels_T=tokens.roll(-1),
            positions_T=torch.cat([torch.arange(n) for n in pieces]),
            document_ends=tuple(ends),
            sequence_ends=tuple(ends),
            sequence_tokens=tuple(pieces),
            sequence_targets=tuple(pieces),
        )
        sharing = Sharing(attend=self._pool.attention(group.attention))
        if group.size == 1:
            return whole, sharing
        position = self._rank - group.first_rank
        return whole.share(token_ranges(ends[-1], group.attention, position)), sharing


def _pool(rank: int, layout: Layout, setting: Setting, ledger: Ledger) -> SequencePool:
    schemes = [
        scheme
        for degree in (1, 2, 4)
        for scheme in possible_schemes(
            degree,
            num_heads=setting.heads,
            num_kv_heads=setting.heads,
            windowed=False,
            ranks_per_host=RANKS_PER_HOST,
        )
    ]
    return open_pool(layout, rank=rank, schemes=schemes, ledger=ledger)


def _planner(setting: Setting, layout: Layout, degrees: tuple[int, ...]) -> GroupPlanner:
    a = setting.architecture()
    linear = flops_per_token(a, a.vocab_size, context_tokens=0)
    full = flops_per_token(a, a.vocab_size, context_tokens=setting.longest_tokens)
    return GroupPlanner(
        layout=layout,
        arithmetic=BatchArithmetic(
            global_batch_tokens=0,
            global_batch_sequences=setting.sequences,
            seq_len=setting.longest_tokens,
            max_tokens_per_device=setting.rank_tokens,
            data_ranks=RANKS,
            group_size=0,
        ),
        activation="keep",
        model=ModelCost(
            parameters=parameter_count(a),
            flops_per_token=full,
            linear_flops_per_token=linear,
            quadratic_flops=(full - linear) / setting.longest_tokens,
            attention=AttentionShape(
                num_heads=a.num_heads,
                num_kv_heads=a.num_kv_heads,
                head_dim=a.resolved_head_dim,
                element_bytes=4,
                num_layers=a.num_layers,
                windowed=False,
            ),
            sharded=True,
            param_bytes=4,
            reshard_after_forward=True,
        ),
        hardware=measure_hardware(torch.device("cpu"), ranks_per_host=RANKS_PER_HOST),
        degrees=degrees,
        ranks_per_host=RANKS_PER_HOST,
    )


def run(rank: int, master: str, port: int, setting: Setting) -> dict[str, list[float]]:
    """Seconds of every step after the warm-up, by who planned it."""
    torch.set_num_threads(1)
    environment = RankEnvironment(
        rank=rank,
        world_size=RANKS,
        local_rank=rank % RANKS_PER_HOST,
        local_world_size=RANKS_PER_HOST,
        host=str(rank // RANKS_PER_HOST),
        master_address=master,
        master_port=port,
    )
    join(environment, deadline_s=120)
    trainer = Trainer(rank, setting)
    seconds: dict[str, list[float]] = {name: [] for name in ("auto", *PEERS)}
    for number in range(-WARM_UP, setting.batches):
        lengths = draw_lengths(setting, seed=number + WARM_UP)
        taken: dict[str, float] = {}
        for name in ("auto", "one_size", "two", "one"):
            plan = trainer.plan(name, number, lengths)
            if plan is not None:
                taken[name] = trainer.step(plan, lengths)
                trainer.observe(name, plan, taken[name])
            if name == "one_size" and plan is not None:
                taken["ulysses"] = trainer.step(trainer.heads_only(plan), lengths)
        if number >= 0:
            seconds["auto"].append(taken["auto"])
            seconds["ulysses_one_size"].append(taken.pop("ulysses"))
            seconds["one_size"].append(taken["one_size"])
            seconds["best_size_per_batch"].append(
                min(s for name, s in taken.items() if name != "auto")
            )
    leave()
    return seconds


if __name__ == "__main__":
    own_rank = int(sys.argv[1])
    found = run(own_rank, sys.argv[2], int(sys.argv[3]), Setting(**json.loads(sys.argv[4])))
    if own_rank == 0:
        Path(sys.argv[5]).write_text(json.dumps(found))
