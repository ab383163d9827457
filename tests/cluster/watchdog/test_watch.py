"""The guarantees of cluster/watchdog/watch.py, on simulated hours and with simulated faults."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from cluster.watchdog.config import WatchdogConfig
from cluster.watchdog.evidence import ClusterEvidence
from cluster.watchdog.watch import Watchdog
from tests.cluster.watchdog.load import Load
from tests.cluster.watchdog.setting import HOSTS, Fault, Setting
from tests.cluster.watchdog.simulation import Simulation
from tests.cluster.watchdog.trials import ENOUGH, RUNS, hits, in_20_steps, named

CALM = Setting(seed=5, step_s=0.8, warm_up_s=4.0)


def run(setting: Setting, until_s: float) -> Iterator[ClusterEvidence]:
    return Simulation(setting).observe(until_s)


def test_an_observer_that_pauses_blames_nobody():
    watchdog = Watchdog(WatchdogConfig())
    for evidence in run(CALM, 150.0):
        if not 60.0 < evidence.now_s < 110.0:
            assert watchdog.observe(evidence) is None


def test_a_clock_that_jumps_blames_nobody():
    watchdog = Watchdog(WatchdogConfig())
    for evidence in run(CALM, 120.0):
        jump_s = 0.0 if evidence.now_s < 60 else 1e5 if evidence.now_s < 90 else -1e5
        assert watchdog.observe(replace(evidence, now_s=evidence.now_s + jump_s)) is None


def test_a_finding_stands_until_its_signs_are_gone():
    watchdog = Watchdog(WatchdogConfig())
    found = []
    for evidence in run(CALM, 90.0):
        ranks = dict(evidence.ranks)
        if 60.0 < evidence.now_s < 70.0:
            ranks[3] = replace(ranks[3], process="stopped")
        found.append((evidence.now_s, watchdog.observe(replace(evidence, ranks=ranks))))
    standing = [now_s for now_s, finding in found if finding]
    assert 60.5 < standing[0] < 62.0
    assert 69.0 < standing[-1] < 70.5
    assert all(finding.rank == 3 for _, finding in found if finding)


def test_two_faults_at_once_are_both_found_the_gone_process_first():
    fault = Fault(kind="freeze", at_s=60.0, rank=1, process="stopped")
    watchdog = Watchdog(WatchdogConfig())
    for evidence in run(replace(CALM, fault=fault), 64.0):
        ranks = dict(evidence.ranks)
        if evidence.now_s > 60.0:
            ranks[2] = replace(ranks[2], process="gone")
        watchdog.observe(replace(evidence, ranks=ranks))
    assert [(found.rank, found.cause) for found in watchdog.findings[:2]] == [
        (2, "process-gone"),
        (1, "process-stopped"),
    ]


def test_after_a_recovery_ranks_have_a_clean_record():
    fault = Fault(kind="slow-rank", at_s=40.0, rank=1, factor=2.5)
    watchdog = Watchdog(WatchdogConfig())
    before = after = None
    for evidence in run(replace(CALM, fault=fault), 82.0):
        if evidence.now_s < 80.0:
            before = watchdog.observe(evidence)
            continue
        anew = {
            rank: replace(seen, reading=replace(seen.reading, generation=1))
            for rank, seen in evidence.ranks.items()
            if seen.reading
        }
        after = watchdog.observe(replace(evidence, ranks=anew))
    assert before is not None
    assert before.rank == 1
    assert after is None


def test_nothing_is_said_before_there_is_anything_to_see():
    watchdog = Watchdog(WatchdogConfig())
    assert watchdog.observe(ClusterEvidence(now_s=0.0, ranks={})) is None
    assert watchdog.findings == ()
    assert not watchdog.deadlines.known


def test_titles_are_those_of_c4_and_keys_tell_troubles_apart():
    fault = Fault(kind="freeze", at_s=60.0, rank=1, process="stopped")
    watchdog = Watchdog(WatchdogConfig())
    found = [watchdog.observe(evidence) for evidence in run(replace(CALM, fault=fault), 70.0)]
    keys = {finding.key for finding in found if finding}
    assert keys == {("process-stopped", 1, "host-a", None)}
    assert found[-1] is not None
    assert found[-1].title == "non-communication hang"


HOUR_S = 3600.0

HOURS = [
    Setting(seed=1, step_s=4.0, noise=0.2, change_at=150),
    Setting(seed=2, step_s=2.5, noise=0.1, save_every=90, validate_every=140),
]


@pytest.mark.parametrize("setting", HOURS, ids=lambda setting: f"{setting.step_s} s steps")
def test_an_hour_raises_nothing(setting):
    simulation, watchdog = Simulation(setting), Watchdog(WatchdogConfig())
    for evidence in simulation.observe(HOUR_S):
        assert watchdog.observe(evidence) is None, str(watchdog.findings[0])
    assert simulation.step > 2 * setting.change_at
    limits = watchdog.deadlines
    assert {"saving", "validation"} <= set(limits.phases_s)


def test_ten_minutes_of_short_steps_raise_nothing():
    simulation = Simulation(Setting(seed=4, step_s=0.2, noise=0.2, pause_s=0.2))
    watchdog = Watchdog(WatchdogConfig())
    for evidence in simulation.observe(HOUR_S / 6):
        assert watchdog.observe(evidence) is None, str(watchdog.findings[0])
    assert watchdog.deadlines.known


@pytest.mark.parametrize("seed", range(8))
def test_an_hour_on_machines_that_become_busy_raises_nothing(seed):
    load = Load(from_s=60.0)
    simulation = Simulation(Setting(seed=seed, step_s=0.3, warm_up_s=4.0, load=load))
    watchdog = Watchdog(WatchdogConfig())
    for evidence in simulation.observe(HOUR_S / 8):
        assert watchdog.observe(evidence) is None, str(watchdog.findings[0])
    assert watchdog.deadlines.silence_s < 20.0


def test_a_hung_rank_on_busy_machines_is_found_later():
    def right(fault, found):
        return found.finding.rank == fault.rank and found.after_s <= 5 * max(
            3.0, 5 * found.median_step_s
        )

    phases = ("forward", "backward", "update")
    load = Load(from_s=20.0)
    assert hits(right, kind="freeze", phases=phases, step_s=0.4, load=load) >= ENOUGH


def test_a_rank_at_half_speed_on_busy_machines():
    def right(fault, found):
        return (found.finding.cause, found.finding.rank) == ("slow-compute", fault.rank)

    load = Load(from_s=20.0, least_share=0.4, most_share=0.6)
    assert hits(right, kind="slow-rank", factor=2.0, load=load) >= ENOUGH


@pytest.mark.parametrize("step_s", [0.4, 1.2])
def test_a_hung_rank(step_s):
    phases = ("forward", "backward", "update")
    right = named("hang", "never-arrived")
    assert hits(right, kind="freeze", phases=phases, step_s=step_s) >= ENOUGH


def test_a_stopped_process_in_any_phase_names_rank_and_phase():
    right = named("hang", "process-stopped")

    def with_phase(fault, found):
        return right(fault, found) and found.finding.phase == (fault.phase or found.finding.phase)

    phases = ("", "forward", "backward", "data", "update")
    assert hits(with_phase, kind="freeze", phases=phases, process="stopped") == RUNS


def test_a_process_that_is_gone():
    assert hits(named("lost", "process-gone"), kind="freeze", process="gone") >= ENOUGH


def test_a_data_loader_that_hangs():
    assert hits(named("data", "data-loader"), kind="freeze", phases=("data",)) >= ENOUGH


def test_a_disk_that_hangs_while_saving():
    def right(fault, found):
        return found.finding.kind == "storage" and found.finding.rank == fault.rank

    assert hits(right, kind="freeze", phases=("saving",), save_every=25) >= ENOUGH


def test_a_cut_link():
    def right(_, found):
        finding = found.finding
        ends = (finding.cause, finding.link) == ("all-arrived", ("host-a", "host-b"))
        return ends and finding.title == "communication hang" and found.in_time

    assert hits(right, kind="cut") >= ENOUGH


def test_a_lost_host():
    limit_s = WatchdogConfig().silence_s + 1.0

    def right(fault, found):
        return found.finding.host == HOSTS[fault.rank] and found.after_s < limit_s

    assert hits(right, kind="silent-host") >= ENOUGH


def test_a_rank_at_half_speed():
    def right(fault, found):
        return (found.finding.cause, found.finding.rank) == ("slow-compute", fault.rank)

    assert hits(in_20_steps(right), kind="slow-rank", factor=2.0) >= ENOUGH


def test_a_link_at_a_tenth():
    def right(_, found):
        return found.finding.link == ("host-a", "host-b") and found.finding.kind == "slow"

    assert hits(in_20_steps(right), kind="slow-link", factor=10.0) >= ENOUGH


def test_batches_that_come_late():
    def right(fault, found):
        return (found.finding.cause, found.finding.rank) == ("slow-data", fault.rank)

    assert hits(in_20_steps(right), kind="slow-data", factor=1.5) >= ENOUGH


def test_a_loss_that_is_not_finite():
    def right(fault, found):
        return (found.finding.kind, found.finding.rank) == ("numeric", fault.rank)

    assert hits(right, kind="nan") >= ENOUGH
