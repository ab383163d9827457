"""Four ranks play four hosts, whose links are given and change in the middle of a run: what
replicas exchange and how rows reach experts follows, and losses stay what they were."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from comms.buckets import GradientBuckets
from comms.compression.config import CompressionConfig, StepChoice
from comms.config import RankEnvironment
from comms.groups import broadcast_bytes
from comms.ledger import Ledger
from comms.links.map import LinkMap, map_of
from parallel.experts.dispatch import ExpertDispatch
from parallel.experts.hosts import ExpertStages
from parallel.layout import Layout
from parallel.replicas import open_replicas
from tests.ranks import run_on_ranks
from tests.trainer.planner.planners import LENGTHS, fixed_planner
from trainer.host_map import map_hosts
from trainer.links import Followers, open_links
from trainer.model.experts import grouped_swiglu
from trainer.planner.codec import decode_plan, encode_plan
from trainer.planner.links import WARM_UP_STEPS, LinkedPlanner
from trainer.planner.plan import Terms
from trainer.run_folder import RunFolder, read_lines

STEPS = WARM_UP_STEPS + 8
CHANGED_AT = WARM_UP_STEPS + 4
"""The first step after the plan that measures again; a plan is made before its step's."""

EXPERTS, WIDTH = 8, 6


def _even() -> LinkMap:
    return map_of([[1e-5] * 4] * 4, [[1e9] * 4] * 4)


def _apart() -> LinkMap:
    """Hosts 0 and 2 are close, and 1 and 3; one way in between is better than the other."""
    rates = [[1e9 if (a - b) % 2 == 0 else 1e8 for b in range(4)] for a in range(4)]
    for a, b in ((0, 1), (2, 3)):
        rates[a][b] = rates[b][a] = 1e7
    return map_of([[1e-5] * 4] * 4, rates)


def _train(rank: int, root: str, method: str, later: LinkMap) -> dict:
    """Losses of some steps, and what plans said and the wire carried."""
    layout, ledger = Layout(replica=4), Ledger()
    torch.manual_seed(0)
    w_in, w_out = (nn.Parameter(torch.randn(shape) / 4) for shape in ((24, 32), (32, 24)))
    config = CompressionConfig(method="econtrol", ratio=0.2, dense_below=0, dense_steps=0)
    replicas = open_replicas(config, layout, ranks_per_host=1, ledger=ledger)
    lane = replicas.lane()
    buckets = GradientBuckets(
        [w_in, w_out], group=dist.group.WORLD, bucket_bytes=3000, ledger=ledger, exchange=lane
    )
    dispatch = ExpertDispatch(dist.group.WORLD, num_experts=EXPERTS, ledger=ledger)
    here = replace(RankEnvironment.on_this_machine(rank, 4, 0), host=f"host{rank}", local_rank=0)
    links = open_links(
        map_hosts(here, lambda group: _even()),
        here,
        Followers(rings=[replicas], stages=ExpertStages([range(4)], [dispatch])),
        layout,
        RunFolder(Path(root)),
        step=0,
        measure=lambda group: later,
    )
    assert links is not None
    planner = None if links.watch is None else LinkedPlanner(fixed_planner(), links.watch)
    found: dict = {"losses": [], "rings": [], "groups": [], "staged": []}
    for step in range(1, STEPS + 1):
        payload = b"" if planner is None else encode_plan(planner.choose(step, LENGTHS))
        plan = decode_plan(broadcast_bytes(payload, group=dist.group.WORLD))
        links.follow(plan)
        replicas.choose(StepChoice.parse(method))
        ledger.take()
        buckets.start_round(last=True)
        x = torch.randn(8, 24, generator=torch.Generator().manual_seed(4 * step + rank))
        loss = (torch.tanh(x @ w_in) @ w_out - x).square().mean()
        loss.backward()
        buckets.finish()
        replicas.settle(commit=True)
        with torch.no_grad():
            for w in (w_in, w_out):
                w -= 0.02 * w.grad
        buckets.zero()
        rows = _experts(dispatch, step)
        found["losses"].append(float(loss.detach()) + rows)
        found["rings"].append(plan.ring_hosts)
        found["groups"].append(plan.host_groups)
        found["staged"].append("ep/all_to_all_between_hosts" in ledger.take()[0])
        if planner is not None:
            slow = Terms(compute_s=1.0, communication_s=5.0)
            planner.observe(plan, slow if step > WARM_UP_STEPS else plan.predicted)
    replicas.exchange.close()
    return found


def _experts(dispatch: ExpertDispatch, step: int) -> float:
    rank, each = dist.get_rank(), EXPERTS // 4
    draw = torch.Generator().manual_seed(100 * step + rank)
    counts = torch.randint(0, 4, (EXPERTS,), generator=draw)
    x = torch.randn(int(counts.sum()), WIDTH, generator=draw)
    own = torch.Generator().manual_seed(rank)
    weights = [
        torch.randn(shape, generator=own)
        for shape in ((each, WIDTH, 2 * WIDTH), (each, WIDTH, WIDTH))
    ]
    return float(dispatch.run(x, counts, lambda r, c: grouped_swiglu(r, c, *weights)).sum())


def _body(rank: int, root: str) -> dict:
    found = {}
    for method in ("econtrol@0.2", "none"):
        for name, later in (("same", _even()), ("changed", _apart())):
            folder = f"{root}/{name}-{method.partition('@')[0]}"
            found[name, method] = _train(rank, folder, method, later)
    return found


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> tuple[Path, list[dict]]:
    root = tmp_path_factory.mktemp("links")
    return root, run_on_ranks(4, _body, str(root))


def test_losses_are_those_of_a_run_whose_links_stayed_as_they_were(runs):
    for rank in runs[1]:
        same, changed = (rank[name, "econtrol@0.2"]["losses"] for name in ("same", "changed"))
        assert changed == same
        same, changed = (rank[name, "none"]["losses"] for name in ("same", "changed"))
        assert changed == pytest.approx(same, rel=1e-5)
        assert changed[:CHANGED_AT] == same[:CHANGED_AT]


def test_a_ring_and_groups_are_taken_up_by_all_at_the_same_step(runs):
    for rank in runs[1]:
        for method in ("econtrol@0.2", "none"):
            run = rank["changed", method]
            assert run["rings"] == [(0, 1, 2, 3)] * CHANGED_AT + [(0, 2, 1, 3)] * (
                STEPS - CHANGED_AT
            )
            assert run["groups"] == [()] * CHANGED_AT + [((0, 2), (1, 3))] * (STEPS - CHANGED_AT)
            assert run["staged"] == [False] * CHANGED_AT + [True] * (STEPS - CHANGED_AT)
            assert set(rank["same", method]["rings"]) == {(0, 1, 2, 3)}


def test_the_change_is_an_event_and_a_measurement_that_changes_nothing_another(runs):
    for name, kind in (("same", "links_measured"), ("changed", "links_changed")):
        first, again = read_lines(runs[0] / f"{name}-none" / "events.jsonl")
        assert (first["kind"], again["kind"]) == ("links_measured", kind)
        assert again["step"] == CHANGED_AT
    assert (again["ring_before"], again["ring"]) == ([0, 1, 2, 3], [0, 2, 1, 3])
    assert (again["groups_before"], again["groups"]) == ([[0, 1, 2, 3]], [[0, 2], [1, 3]])
