"""The guarantees of trainer/rl/ledger.py, by simulation of runs in which anything may die."""

import json
import random

import pytest

from trainer.rl.ledger import PromptLedger
from trainer.rl.ledger_records import Kept, Lease, merged
from trainer.rl.staleness import StalenessBound


def answer(lease: Lease, versions: list[int], tokens: int) -> Kept:
    """What a worker has after `tokens` more tokens, drawn by the last of `versions`."""
    before = [] if lease.kept is None else list(lease.kept.payload["versions"])
    drawn = before + [versions[-1]] * tokens
    return Kept(payload={"versions": drawn}, oldest=min(drawn), newest=max(drawn))


class Run:
    """Workers, a trainer with checkpoints, and a controller, all of which may die."""

    def __init__(self, seed: int, *, eta: int, prompts: int, faults: bool) -> None:
        self.chance = random.Random(seed)
        self.faults = faults
        self.bound = StalenessBound(max_staleness=eta, prompts_per_step=3, max_running=7)
        self.ledger = PromptLedger(prompts=prompts, lease_s=50.0)
        self.now_s = 0.0
        self.held: dict[str, tuple[Lease, int, int]] = {}
        self.lineage: list[list[tuple[int, int]]] = []
        """Trained by each step that counts: prompt and the oldest version that drew it."""
        self.known, self.written = None, []
        self.saved = (0, self.snapshot())
        self.taken: list[tuple[int, int]] | None = None
        self.names = 0

    @property
    def version(self) -> int:
        return len(self.lineage)

    def snapshot(self) -> str:
        """Put together from the first one of this ledger and what has changed from each to the
        next."""
        self.written.append(json.loads(json.dumps(self.ledger.snapshot(self.known))))
        self.known = self.ledger.records
        whole = merged(self.written[0], self.written[1:])
        assert whole == json.loads(json.dumps(self.ledger.snapshot()))
        return json.dumps(whole)

    def lease(self) -> None:
        lag = self.chance.randint(0, 2) if self.chance.random() < 0.3 else 0
        version = max(0, self.version - lag)
        room = self.bound.capacity(
            step=self.ledger.next_step,
            version=version,
            under_way=self.ledger.under_way(),
            running=self.ledger.running,
        )
        self.names += 1
        worker = f"worker {self.names}"
        lease = self.ledger.lease(worker, version=version, now_s=self.now_s, room=room)
        if lease is not None:
            self.held[worker] = (lease, version, 0)

    def work(self) -> None:
        if not self.held:
            return
        worker = self.chance.choice(sorted(self.held))
        lease, version, _ = self.held[worker]
        version = self.chance.randint(version, max(version, self.version))
        kept = answer(lease, [version], 1 + self.chance.randint(0, 3))
        lease = Lease(number=lease.number, lease_id=lease.lease_id, worker=worker, kept=kept)
        if self.chance.random() < 0.4:
            assert self.ledger.finish(lease.lease_id, kept)
            del self.held[worker]
        else:
            assert self.ledger.report(lease.lease_id, kept, now_s=self.now_s)
            self.held[worker] = (lease, version, 0)

    def take(self) -> None:
        if self.taken is None:
            numbers = self.bound.choose(
                step=self.ledger.next_step,
                under_way=self.ledger.under_way(),
                exhausted=self.ledger.exhausted,
            )
            if numbers:
                step, records = self.ledger.take(numbers)
                assert step == self.version
                self.taken = [(r.number, r.kept.oldest) for r in records]

    def commit(self) -> None:
        if self.taken is None:
            return
        self.lineage.append(self.taken)
        self.taken = None
        if self.faults and self.chance.random() < 0.1:
            # The controller dies between the trainer's update and the ledger's commit.
            self.restart(self.snapshot())
            return
        self.ledger.commit(self.version - 1)
        if self.chance.random() < 0.4:
            self.saved = (self.version, self.snapshot())
            self.ledger.forget(self.version)

    def fault(self) -> None:
        kind = self.chance.choice(["worker", "silence", "trainer", "controller"])
        if kind == "worker" and self.held:
            worker = self.chance.choice(sorted(self.held))
            lease, version, _ = self.held.pop(worker)
            assert self.ledger.lose(worker) == [lease.number]
            late = answer(lease, [version], 1)
            assert not self.ledger.finish(lease.lease_id, late)
        if kind == "silence":
            self.now_s += 51.0
            lost = self.ledger.expire(self.now_s)
            assert lost == sorted(lease.number for lease, _, _ in self.held.values())
            self.held.clear()
        if kind == "trainer":
            step, _ = self.saved
            late = [lease for lease, _, _ in self.held.values()]
            self.ledger.rewind(step)
            del self.lineage[step:]
            self.taken = None
            assert not any(self.ledger.finish(one.lease_id, answer(one, [step], 1)) for one in late)
            self.held.clear()
        if kind == "controller":
            step, text = self.saved
            del self.lineage[step:]
            self.restart(text)

    def restart(self, text: str) -> None:
        self.ledger = PromptLedger.restore(json.loads(text), step=self.version, lease_s=50.0)
        self.known, self.written = None, []
        self.taken = None
        self.held.clear()

    def until_done(self) -> None:
        for _ in range(20_000):
            counts = self.ledger.counts()
            idle = self.ledger.exhausted and self.taken is None
            if idle and set(counts) <= {"trained", "forgotten"}:
                return
            if self.faults and self.chance.random() < 0.03:
                self.fault()
            self.chance.choice([self.lease, self.work, self.take, self.commit])()
        pytest.fail(f"no end: {self.ledger.counts()}")


@pytest.mark.parametrize("eta", [0, 1, 3])
def test_each_prompt_is_trained_once_whatever_dies(eta):
    for seed in range(20):
        run = Run(seed, eta=eta, prompts=40, faults=True)
        run.until_done()
        numbers = [number for step in run.lineage for number, _ in step]
        assert sorted(numbers) == list(range(40))
        stale = [step - oldest for step, one in enumerate(run.lineage) for _, oldest in one]
        assert min(stale) >= 0
        assert max(stale) <= eta


def test_without_staleness_the_order_is_that_of_the_undisturbed_run():
    orders = set()
    for seed in range(12):
        run = Run(seed, eta=0, prompts=24, faults=seed > 0)
        run.until_done()
        orders.add(str([[number for number, _ in step] for step in run.lineage]))
    assert orders == {str([list(range(first, first + 3)) for first in range(0, 24, 3)])}


def finished(ledger: PromptLedger, count: int, *, version: int = 0) -> list[int]:
    """Begin and finish `count` prompts; their numbers."""
    numbers = []
    for _ in range(count):
        lease = ledger.lease("w", version=version, now_s=0.0, room=1)
        assert ledger.finish(lease.lease_id, Kept(payload={}, oldest=version, newest=version))
        numbers.append(lease.number)
    return numbers


def test_a_lost_workers_tokens_are_kept_and_its_later_word_refused():
    ledger = PromptLedger()
    first = ledger.lease("a", version=0, now_s=0.0, room=1)
    tokens = Kept(payload={"tokens": [5, 6]}, oldest=0, newest=0)
    assert ledger.report(first.lease_id, tokens, now_s=1.0)
    assert ledger.lose("a") == [0]
    assert ledger.running == 0
    again = ledger.lease("b", version=0, now_s=2.0, room=0)
    assert (again.number, again.kept) == (0, tokens)
    assert not ledger.report(first.lease_id, None, now_s=3.0)
    assert not ledger.finish(first.lease_id, tokens)
    assert ledger.lease("c", version=0, now_s=3.0, room=0) is None


def test_what_goes_on_waits_for_a_worker_that_is_not_older():
    ledger = PromptLedger()
    finished(ledger, 1)
    ledger.take([0])
    ledger.commit(0)
    lease = ledger.lease("a", version=1, now_s=0.0, room=1)
    ledger.report(lease.lease_id, Kept(payload={}, oldest=1, newest=1), now_s=0.0)
    ledger.lose("a")
    assert ledger.lease("b", version=0, now_s=0.0, room=1).number == 2
    assert ledger.lease("c", version=1, now_s=0.0, room=0).number == 1


def test_going_back_gives_prompts_again_without_what_undone_versions_drew():
    ledger = PromptLedger()
    finished(ledger, 2)
    for step, number in enumerate([0, 1]):
        ledger.take([number])
        ledger.commit(step)
    finished(ledger, 2, version=2)
    ledger.take([2])
    ledger.drop(3, "all rewards are 1")
    assert ledger.counts() == {"trained": 2, "taken": 1, "dropped": 1, "forgotten": 0}
    ledger.rewind(1)
    assert ledger.counts() == {"trained": 1, "finished": 1, "due": 2, "forgotten": 0}
    assert [w.number for w in ledger.under_way()] == [1]
    assert ledger.lease("w", version=1, now_s=0.0, room=1).kept is None


def test_prompts_are_trained_with_the_commit_and_not_before():
    ledger = PromptLedger(prompts=3)
    finished(ledger, 2)
    step, records = ledger.take([1, 0])
    assert (step, [record.number for record in records]) == (0, [1, 0])
    assert ledger.counts()["taken"] == 2
    taken = json.dumps(ledger.snapshot())
    before = PromptLedger.restore(json.loads(taken), step=0)
    assert before.counts() == {"finished": 2, "forgotten": 0}
    after = PromptLedger.restore(json.loads(taken), step=1)
    assert after.counts() == {"trained": 2, "forgotten": 0}
    with pytest.raises(ValueError, match="step 1 cannot be committed after 0 commits"):
        ledger.commit(1)


def test_a_snapshot_is_plain_and_complete():
    ledger = PromptLedger(prompts=9)
    finished(ledger, 3)
    ledger.take([0])
    ledger.commit(0)
    ledger.forget(1)
    ledger.lease("w", version=1, now_s=0.0, room=1)
    again = PromptLedger.restore(json.loads(json.dumps(ledger.snapshot())), step=1)
    assert again.counts() == {"finished": 2, "due": 1, "forgotten": 1}
    assert again.snapshot() == PromptLedger.restore(again.snapshot(), step=1).snapshot()


def test_finished_answers_of_wrong_versions_are_refused():
    ledger = PromptLedger()
    finished(ledger, 1)
    ledger.take([0])
    ledger.commit(0)
    lease = ledger.lease("w", version=1, now_s=0.0, room=1)
    with pytest.raises(ValueError, match="versions 0 to 1, but began it with 1"):
        ledger.finish(lease.lease_id, Kept(payload={}, oldest=0, newest=1))
    with pytest.raises(ValueError, match="versions 1 to 5"):
        ledger.finish(lease.lease_id, Kept(payload={}, oldest=1, newest=5))
    assert ledger.lose("w") == [1], "the prompt is not lost with the bad answer"


def test_misuse_is_refused():
    ledger = PromptLedger()
    finished(ledger, 1)
    with pytest.raises(ValueError, match="name a prompt twice"):
        ledger.take([0, 0])
    with pytest.raises(ValueError, match="prompt 7 cannot be taken: it is not known"):
        ledger.take([7])
    ledger.take([0])
    with pytest.raises(ValueError, match="prompt 0 cannot be dropped: it is taken"):
        ledger.drop(0, "late")
    ledger.commit(0)
    ledger.forget(1)
    with pytest.raises(ValueError, match="version 0 cannot be gone back to"):
        ledger.rewind(0)
    with pytest.raises(ValueError, match="version 3 is not committed"):
        ledger.forget(3)
    with pytest.raises(ValueError, match="oldest=2 is above newest=1"):
        Kept(payload={}, oldest=2, newest=1)


@pytest.mark.parametrize(
    "damage",
    [
        lambda plain: plain.pop("records"),
        lambda plain: plain["records"].pop(),
        lambda plain: plain["records"][0].update(state="gone"),
        lambda plain: plain.update(format=99),
        lambda plain: plain.update(first_number=5),
    ],
)
def test_a_damaged_snapshot_is_refused(damage):
    ledger = PromptLedger()
    finished(ledger, 2)
    plain = json.loads(json.dumps(ledger.snapshot()))
    damage(plain)
    with pytest.raises(ValueError, match="use another checkpoint"):
        PromptLedger.restore(plain, step=0)
