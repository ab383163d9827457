"""The guarantees of trainer/rl/conducting/figures.py."""

import pytest

from tests.trainer.rl.conducting.groups import group
from trainer.rl.conducting.figures import Figures
from trainer.rl.messages import Committed, Published, Pulse, Updated


def test_each_judged_group_counts_once():
    figures = Figures()
    figures.leave_out(group(0, (1.0, 1.0)))
    first = figures.of_step(2, [group(1, (0.0, 1.0), version=1)], weights_version=2, now_s=1.0)
    assert (first["reward/mean"], first["accuracy"]) == (0.75, 0.75)
    assert first["reward/std"] == pytest.approx(0.4330127)
    assert (first["groups/trained"], first["groups/dropped_equal"]) == (1.0, 1.0)
    assert (first["staleness/mean"], first["weights_version"]) == (1.0, 2.0)
    second = figures.of_step(3, [group(2, (0.0, 2.0))], weights_version=3, now_s=2.0)
    assert (second["reward/mean"], second["groups/dropped_equal"]) == (1.0, 0.0)


def test_there_is_no_figure_for_what_nobody_measured():
    found = Figures().of_step(0, [], weights_version=None, now_s=0.0)
    assert "reward/mean" not in found
    assert "timing_s/rollout_wait" not in found
    assert "weights_version" not in found
    assert found["staleness/max"] == 0.0


def test_lengths_and_what_sampling_cut_off_are_means_over_answers_and_tokens():
    found = Figures().of_step(
        0, [group(0, (0.0, 1.0), tokens=[2, 6])], weights_version=0, now_s=0.0
    )
    assert found["response_length/mean"] == 4.0
    assert found["rollout/kept_log_mass"] == pytest.approx(-0.125)


def test_waits_are_means_over_workers_and_publications_are_those_since_the_last_step():
    figures = Figures()
    figures.of_step(0, [], weights_version=0, now_s=10.0)
    for worker, idle_s in (("a", 1.0), ("a", 2.0), ("b", 5.0)):
        figures.pulse(
            worker,
            Pulse(
                version=0, running=1, drawn_tokens=40, busy_s=1.0, idle_s=idle_s, figures={"x": 3.0}
            ),
        )
    figures.published(Published(version=1, sent_bytes=7, seconds={"total": 0.5}))
    for paused_s in (0.25, 0.125):
        figures.updated(Updated(version=1, paused_s=paused_s, received_bytes=1))
    figures.committed(Committed(version=0, saved=None, trained_s=1.0, waited_s=0.75))
    found = figures.of_step(1, [], weights_version=1, now_s=14.0)
    assert (found["timing_s/rollout_wait"], found["rollout/tokens_per_s"]) == (4.0, 30.0)
    assert (found["publish/seconds"], found["publish/pause_s"]) == (0.5, 0.25)
    assert (found["timing_s/trainer_wait"], found["x"]) == (0.75, 3.0)
    after = figures.of_step(2, [], weights_version=1, now_s=15.0)
    assert "publish/seconds" not in after
    assert after["staleness/max"] == 0.0
