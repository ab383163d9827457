"""The guarantees of trainer/rl/staleness.py, by simulation of workers that lag and stall."""

import random

import pytest

from trainer.rl.staleness import StalenessBound, UnderWay, distribution


class Run:
    """A run with workers that take their time and their weights as chance has it."""

    def __init__(self, bound: StalenessBound, seed: int, *, prompts: int, lagging: bool) -> None:
        self.bound = bound
        self.chance = random.Random(seed)
        self.prompts = prompts
        self.lagging = lagging
        self.next_number = 0
        self.step = 0
        self.training: list[UnderWay] = []
        self.committed = 0
        self.under_way: dict[int, UnderWay] = {}
        self.trained: list[list[UnderWay]] = []

    def start(self) -> bool:
        oldest = max(0, self.committed - (3 if self.lagging else 0))
        version = self.chance.randint(oldest, self.committed)
        return self.start_at(version)

    def start_at(self, version: int) -> bool:
        running = sum(not one.finished for one in self.under_way.values())
        room = self.bound.capacity(
            step=self.step,
            version=version,
            under_way=list(self.under_way.values()),
            running=running,
        )
        if room < 1 or self.next_number >= self.prompts:
            return False
        self.under_way[self.next_number] = UnderWay(self.next_number, version, False)
        self.next_number += 1
        return True

    def finish(self) -> bool:
        running = [one for one in self.under_way.values() if not one.finished]
        if not running:
            return False
        # Some prompts take very long: chance favours those that began last.
        one = running[-1] if self.chance.random() < 0.7 else self.chance.choice(running)
        self.under_way[one.number] = one._replace(finished=True)
        return True

    def take(self) -> bool:
        if self.training:
            return False
        numbers = self.bound.choose(
            step=self.step,
            under_way=list(self.under_way.values()),
            exhausted=self.next_number >= self.prompts,
        )
        self.training = [self.under_way.pop(number) for number in numbers]
        if self.training:
            self.trained.append(self.training)
            self.step += 1
        return bool(self.training)

    def commit(self) -> bool:
        ready, self.training = bool(self.training), []
        self.committed += ready
        return ready

    def until_done(self) -> None:
        while self.next_number < self.prompts or self.under_way or self.training:
            for act in self.chance.sample([self.start, self.finish, self.take, self.commit], 4):
                if act():
                    break
            else:
                # Nothing happened by chance. Something must be able to, or this is a deadlock.
                fresh = self.start_at(self.committed)
                assert fresh or self.finish() or self.take() or self.commit(), "deadlock"


@pytest.mark.parametrize("lagging", [False, True])
@pytest.mark.parametrize("eta", [0, 1, 2, 5])
def test_no_prompt_is_too_stale_and_nothing_is_lost_or_stuck(eta, lagging):
    for seed in range(12):
        size, most = random.Random(seed).choice([(1, 9), (3, 2), (4, 50)])
        bound = StalenessBound(max_staleness=eta, prompts_per_step=size, max_running=most)
        run = Run(bound, seed, prompts=60, lagging=lagging)
        run.until_done()
        numbers = [one.number for batch in run.trained for one in batch]
        assert sorted(numbers) == list(range(60))
        staleness = [step - one.version for step, batch in enumerate(run.trained) for one in batch]
        assert max(staleness) <= eta
        assert all(len(batch) == size for batch in run.trained[:-1])


def test_the_bound_is_used_where_training_is_slow():
    bound = StalenessBound(max_staleness=3, prompts_per_step=2, max_running=100)
    run = Run(bound, 0, prompts=100, lagging=False)
    while run.start_at(run.committed):
        pass
    assert run.next_number == 8, "(eta + 1) B prompts begin before the first step"


def test_the_oldest_are_trained_first_in_an_order_of_their_own():
    bound = StalenessBound(max_staleness=2, prompts_per_step=2, max_running=9)
    ways = [UnderWay(5, 1, True), UnderWay(3, 1, True), UnderWay(4, 0, True), UnderWay(6, 1, False)]
    assert bound.choose(step=1, under_way=ways) == (4, 3)
    assert bound.choose(step=1, under_way=ways[::-1]) == (4, 3)


def test_a_step_waits_for_what_would_be_too_old_after_it():
    bound = StalenessBound(max_staleness=1, prompts_per_step=2, max_running=9)
    late = [UnderWay(0, 0, False), UnderWay(2, 1, True), UnderWay(3, 1, True)]
    assert bound.choose(step=1, under_way=late) == ()
    on_time = [late[0]._replace(finished=True), *late[1:]]
    assert bound.choose(step=1, under_way=on_time) == (0, 2)


def test_zero_is_synchronous_whatever_finishes_when():
    orders = set()
    for seed in range(8):
        bound = StalenessBound(max_staleness=0, prompts_per_step=4, max_running=9)
        run = Run(bound, seed, prompts=24, lagging=False)
        run.until_done()
        orders.add(tuple(one.number for batch in run.trained for one in batch))
        assert all(one.version == step for step, b in enumerate(run.trained) for one in b)
    assert orders == {tuple(range(24))}


def test_nothing_starts_beside_a_synchronous_step():
    bound = StalenessBound(max_staleness=0, prompts_per_step=2, max_running=9)
    assert bound.capacity(step=1, version=0, under_way=[], running=0) == 0
    assert bound.capacity(step=1, version=1, under_way=[], running=0) == 2


def test_the_capacity_is_areals_for_workers_that_are_up_to_date():
    for eta, size, version, accepted, running in [
        (0, 4, 0, 0, 3),
        (2, 4, 3, 15, 2),
        (4, 2, 9, 20, 5),
    ]:
        bound = StalenessBound(max_staleness=eta, prompts_per_step=size, max_running=1000)
        # Steps 0 to `version` - 1 have taken the first; the rest is under way, at no great age.
        left = accepted - version * size
        ways = [UnderWay(i, version, True) for i in range(left)]
        ways += [UnderWay(left + i, version, False) for i in range(running)]
        capacity = bound.capacity(step=version, version=version, under_way=ways, running=running)
        assert capacity == max(0, (eta + version + 1) * size - (accepted + running))


def test_weights_of_undone_steps_start_nothing():
    bound = StalenessBound(max_staleness=2, prompts_per_step=2, max_running=9)
    assert bound.capacity(step=3, version=4, under_way=[], running=0) == 0


def test_the_number_of_running_prompts_is_limited():
    bound = StalenessBound(max_staleness=5, prompts_per_step=8, max_running=3)
    assert bound.capacity(step=0, version=0, under_way=[], running=1) == 2


def test_the_distribution_of_a_step():
    found = distribution(7, [7, 7, 6, 4])
    assert found.counts == (2, 1, 0, 1)
    assert (found.prompts, found.mean, found.max) == (4, 1.0, 3)
    assert (found.quantile(0.5), found.quantile(0.75), found.quantile(1.0)) == (0, 1, 3)
    assert (distribution(0, []).mean, distribution(0, []).max) == (0.0, 0)
    with pytest.raises(ValueError, match="step 3 trains an answer of version 4"):
        distribution(3, [4])


@pytest.mark.parametrize(
    ("key", "value"), [("max_staleness", -1), ("prompts_per_step", 0), ("max_running", 0)]
)
def test_an_impossible_bound_is_refused(key, value):
    given = {"max_staleness": 0, "prompts_per_step": 1, "max_running": 1} | {key: value}
    with pytest.raises(ValueError, match=f"{key}={value}"):
        StalenessBound(**given)
