"""The guarantees of trainer/rl/conducting/resizing.py."""

import pytest

from trainer.rl.conducting.actions import Draft
from trainer.rl.conducting.resizing import WORTH_S, Moment, Resizing
from trainer.rl.conducting.split import Places, Split
from trainer.rl.config import RolloutConfig


def split(trainers, workers):
    return Split(trainers=trainers, workers=workers)


def places(trainers=4, workers=4, sizes=range(1, 8), most=(7, 7), spare=0, fixed=""):
    return Places(
        now=split(trainers, workers),
        trainer_sizes=tuple(sizes),
        most_trainers=most[0],
        most_workers=most[1],
        spare=spare,
        fixed=fixed,
    )


class Run:
    """Does the work of a step in rank-seconds, with as many as are there."""

    def __init__(self, given, mode="apply", colocated=0, last=1000):
        self.resizing = Resizing(mode, given, RolloutConfig(colocated_workers=colocated))
        self.present = split(4, 4) if given is None else given.now
        self.events, self.asked, self.steps, self.last, self.now_s = [], [], 0, last, 0.0

    def window(self, trained_s, sampled_s, step_s=None):
        """Ten steps: the seconds of a trainer and a worker of those who are there, in each."""
        for _ in range(10):
            self.step(trained_s, sampled_s, step_s)
        return self

    def step(self, trained_s, sampled_s, step_s=None):
        self.steps += 1
        self.now_s += max(trained_s, sampled_s) if step_s is None else step_s
        for _ in range(self.present.workers):
            self.resizing.sampled(sampled_s)
        at = Moment(step=self.steps, steps_left=self.last - self.steps, now_s=self.now_s)
        self.hear(lambda draft: self.resizing.committed(trained_s, self.present, at, draft))

    def reach(self, present):
        self.present = present
        self.hear(lambda draft: self.resizing.look(present, self.steps, draft, self.now_s))
        return self

    def hear(self, tell):
        draft = Draft()
        tell(draft)
        self.events += draft.events
        self.asked += [] if draft.split is None else [draft.split]

    def kinds(self):
        return [event["kind"] for event in self.events]


def test_advice_comes_once_per_window_and_the_same_only_once():
    run = Run(None, mode="advise")
    for _ in range(9):
        run.step(1.0, 3.0)
    assert run.kinds() == []
    run.step(1.0, 3.0)
    (advice,) = run.events
    assert (advice["trainers"], advice["workers"]) == (2, 6)
    assert "instead of 3 s" in advice["cause"]
    assert "not_applied" not in advice
    run.window(1.0, 3.0)
    assert len(run.events) == 1
    run.window(3.0, 1.0)
    assert (run.events[1]["trainers"], run.events[1]["workers"]) == (6, 2)
    assert run.asked == [], "advice alone"
    assert Run(None, mode="off").window(1.0, 3.0).events == []


def test_a_good_split_is_left_alone():
    assert Run(places()).window(1.0, 1.05).window(1.0, 0.95).asked == []


def test_a_change_is_told_once_it_is_there_and_then_measured():
    run = Run(places()).window(1.0, 3.0)
    assert run.asked == [split(2, 6)]
    assert run.kinds() == []
    assert run.resizing.workers == 6
    run.window(1.0, 3.0).window(1.0, 3.0)
    assert run.asked == [split(2, 6)], "one change at a time"
    run.reach(split(2, 5)).reach(split(2, 6))
    (resized,) = run.events
    assert (resized["kind"], resized["trainers_before"], resized["workers_before"]) == (
        "resized",
        4,
        4,
    )
    assert (resized["trainers"], resized["workers"]) == (2, 6)
    assert (resized["step_s"], resized["present_s"]) == (2.0, 3.0)
    assert resized["seconds"] == pytest.approx(60.0)
    assert "with trainers 2, rollout workers 6" in resized["cause"]
    run.window(2.0, 2.0, step_s=2.25)
    measured = run.events[1]
    assert measured["kind"] == "sizing_measured"
    assert (measured["predicted_s"], measured["before_s"]) == (2.0, 3.0)
    assert measured["step_s"] == pytest.approx(2.25)
    assert run.asked == [split(2, 6)]


def test_only_what_layout_and_places_allow_is_asked_for():
    assert Run(places(sizes=(4,))).window(1.0, 3.0).asked == []
    assert Run(places(sizes=(1, 2, 4))).window(1.0, 1.8).asked == [], "4 + 4 is best of these"
    assert Run(places(sizes=(1, 3, 4))).window(1.0, 3.0).asked == [split(3, 5)]
    why = "a rank needs more than a worker has"
    fixed = Run(places(most=(4, 4), fixed=why)).window(1.0, 3.0)
    assert fixed.asked == []
    assert (fixed.events[0]["kind"], fixed.events[0]["not_applied"]) == ("sizing_advised", why)


def test_nothing_is_changed_while_somebody_is_missing():
    run = Run(places())
    run.present = split(4, 3)
    assert run.window(1.0, 3.0).asked == []
    run.present = split(4, 4)
    for _ in range(9):
        run.step(1.0, 3.0)
    assert run.asked == [], "what was measured then counts for nothing"


def test_a_change_saves_in_the_rest_of_the_run_more_than_it_costs():
    assert Run(places(), last=20).window(100.0, 300.0).asked == [], "it could not be measured"
    enough = 10 + int(WORTH_S / 0.25)
    assert Run(places(), last=enough - 1).window(0.25, 0.75).asked == []
    assert Run(places(), last=enough).window(0.25, 0.75).asked == [split(2, 6)]
    run = Run(places(), last=1000).window(0.25, 0.75)
    run.now_s += 600.0
    run.reach(split(2, 6)).window(0.5, 0.5).window(2.5, 0.25)
    assert run.asked[1:] == [split(6, 2)], "that change took ten minutes, and this one gains more"
    slow = Run(places(), last=200).window(0.25, 0.75)
    slow.now_s += 600.0
    assert slow.reach(split(2, 6)).window(0.5, 0.5).window(2.5, 0.25).asked[1:] == []


def test_the_run_never_goes_back_and_forth():
    run = Run(places()).window(1.0, 3.0).reach(split(2, 6)).window(2.0, 2.0)
    run.window(12.0, 1.0)
    assert run.asked[1:] == [split(6, 2)]
    run.reach(split(6, 2)).window(2.0, 2.0)
    for trained_s, sampled_s in ((1.0, 9.0), (9.0, 1.0), (1.0, 1.2), (4.0, 2.0), (2.0, 4.0)) * 9:
        run.window(trained_s, sampled_s).reach(run.asked[-1])
    assert len(set(run.asked)) == len(run.asked)
    assert split(4, 4) not in run.asked


def test_a_change_that_did_harm_is_undone_once():
    run = Run(places()).window(1.0, 3.0).reach(split(2, 6)).window(4.0, 1.0, step_s=4.0)
    assert run.asked == [split(2, 6), split(4, 4)]
    run.reach(split(4, 4)).window(1.0, 3.0).window(1.0, 3.0)
    assert len(run.asked) == 2
    assert run.kinds() == ["resized", "sizing_measured", "resized", "sizing_advised"]
    assert "takes 4 s now" in run.events[2]["cause"]
    assert "back and forth" in run.events[3]["not_applied"]


def test_what_was_refused_is_not_asked_for_again():
    run = Run(places()).window(1.0, 3.0)
    run.hear(lambda draft: run.resizing.refused("no room on h2", run.steps, draft))
    assert run.resizing.workers == 4
    (refused,) = run.events
    assert (refused["kind"], refused["cause"]) == ("resize_refused", "no room on h2")
    run.window(1.0, 3.0)
    assert run.asked == [split(2, 6)]
    run.hear(lambda draft: run.resizing.refused("late", run.steps, draft))
    assert "late" not in [event["cause"] for event in run.events]


def test_places_that_nobody_has_are_taken_as_far_as_they_help():
    few = places(1, 1, sizes=(1,), most=(1, 1), spare=7)
    assert Run(few).window(1.0, 3.0).asked == [split(1, 3)]
    assert Run(few).window(3.0, 1.0).asked == []
    assert Run(places(spare=1)).window(1.0, 3.0).asked == [split(2, 6)], "4 + 5 is slower by far"
    assert Run(places(spare=4)).window(1.0, 2.0).asked == [split(4, 8)], "ranks need not stop"


def test_workers_in_the_places_of_ranks_are_not_measured():
    run = Run(places(), colocated=2).window(1.0, 3.0).window(1.0, 3.0)
    assert (run.kinds(), run.asked) == (["resize_refused"], [])
    assert "rollout.colocated_workers=2" in run.events[0]["cause"]
    assert Run(places(), mode="advise", colocated=2).window(1.0, 3.0).events == []
