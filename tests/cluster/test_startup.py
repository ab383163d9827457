"""The guarantees of cluster/startup.py and of cluster/progress.py."""

from cluster.config import DeadlineConfig
from cluster.progress import Progress
from cluster.reading import Place
from cluster.startup import ORDER, deadlines_by_phase, least_far, overrun

PLACES = [
    Place(
        rank=rank,
        node_id="n",
        host=f"host-{rank}",
        address="10.0.0.1",
        local_rank=0,
        local_world_size=1,
        device=0,
    )
    for rank in range(3)
]
DEADLINES = deadlines_by_phase(DeadlineConfig(joining_s=5.0, loading_s=100.0))


def test_every_startup_phase_of_a_worker_has_a_deadline() -> None:
    assert list(DEADLINES) == list(ORDER[: ORDER.index("training")])


def test_an_overrun_names_phase_rank_host_elapsed_and_key() -> None:
    found = overrun({0: ("building", 1.0), 1: ("joining", 6.0)}, DEADLINES, PLACES)
    assert found is not None
    rank, text = found
    assert rank == 1
    assert "joining: rank 1 on host-1 has been at it for 6 s" in text
    assert "cluster.deadlines.joining_s" in text


def test_the_rank_that_is_least_far_is_named_first() -> None:
    found = overrun({0: ("loading", 900.0), 2: ("joining", 6.0)}, DEADLINES, PLACES)
    assert found is not None
    assert found[0] == 2


def test_training_and_stopping_have_no_deadline() -> None:
    phases = {0: ("training", 1e9), 1: ("stopping", 1e9), 2: ("done", 1e9)}
    assert overrun(phases, DEADLINES, PLACES) is None


def test_the_group_is_as_far_as_its_slowest_rank() -> None:
    assert least_far({0: "training", 1: "loading", 2: "loading"}) == ("loading", [1, 2])


def test_eta_is_the_median_of_recent_steps() -> None:
    progress = Progress()
    records = [
        {"step": step, "step_s": 100.0 if step == 1 else 2.0, "total_steps": 10}
        for step in range(1, 6)
    ]
    shown = progress.advance(records)
    assert [record["step"] for record in shown] == [1, 2, 3, 4, 5]
    assert shown[-1]["eta_s"] == 5 * 2.0
    assert progress.step == 5


def test_a_rank_that_waits_for_a_slower_one_is_never_late() -> None:
    assert overrun({0: ("joining", 600.0), 1: ("preparing", 600.0)}, DEADLINES, PLACES) is None
    assert overrun({0: ("joining", 600.0), 1: ("joining", 4.0)}, DEADLINES, PLACES) is None
    found = overrun({0: ("joining", 600.0), 1: ("joining", 6.0)}, DEADLINES, PLACES)
    assert found is not None
