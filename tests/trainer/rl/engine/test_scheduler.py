from collections import Counter

import pytest

from trainer.rl.engine.config import EngineConfig
from trainer.rl.engine.request import Request, Sampling
from trainer.rl.engine.scheduler import Scheduler, Speculation
from trainer.rl.engine.sequence import Group, Sequence

CONFIG = EngineConfig(block_tokens=4, max_sequences=5, forward_tokens=12)


def make(prompts, *, config=CONFIG, blocks=100, new_tokens=10):
    """A scheduler with one group per (prompt tokens, answers)."""
    scheduler, order = Scheduler(config, blocks), 0
    for number, (length, samples) in enumerate(prompts):
        request = Request(
            id=str(number),
            prompt=tuple(range(length)),
            seeds=tuple(range(samples)),
            sampling=Sampling(max_new_tokens=new_tokens),
        )
        group = Group(request)
        for sample in range(samples):
            sequence = Sequence(group, sample, order)
            order += 1
            group.unfinished.append(sequence)
            scheduler.add(sequence)
    return scheduler


def step(scheduler, epoch=0):
    """Plan, check what holds of every plan, and act as the engine would."""
    works, copies = scheduler.plan(epoch, None)
    assert sum(work.total_rows for work in works) <= CONFIG.forward_tokens
    written = Counter()
    for work in works:
        sequence = work.sequence
        last = sequence.stored + work.rows - 1
        assert len(sequence.blocks) > last // 4
        written.update(set(sequence.blocks[sequence.stored // 4 : last // 4 + 1]))
    holders = Counter(b for sequence in scheduler.running for b in sequence.blocks)
    assert all(holders[block] == 1 for block in written)
    assert all(scheduler.pool.holders[block] == count for block, count in holders.items())
    assert scheduler.pool.num_free == scheduler.pool.num_blocks - len(holders)
    for work in works:
        work.sequence.stored += work.rows
        if work.draws and work.sequence.append(1) != "running":
            scheduler.remove(work.sequence)
            work.sequence.group.unfinished.remove(work.sequence)
    return works, copies


def run(scheduler):
    """Steps until nothing is left: (order, rows) of each step's works."""
    history = []
    while scheduler.running or scheduler.waiting:
        works, _ = step(scheduler)
        assert works, "nothing goes on"
        history.append([(work.sequence.order, work.rows) for work in works])
    return history


def test_whoever_needs_only_the_next_token_always_has_a_row():
    scheduler = make([(3, 1), (30, 1), (2, 1)])
    history = run(scheduler)
    assert history[0] == [(0, 3), (1, 9)]
    assert history[1] == [(0, 1), (1, 11)]
    for works in history[1:10]:
        assert (0, 1) in works


def test_a_long_prompt_is_cut_to_what_is_left_of_the_budget():
    history = run(make([(30, 1)]))
    assert [rows for works in history[:3] for _, rows in works] == [12, 12, 6]


def test_answers_start_in_order_and_the_prompt_is_computed_once():
    history = run(make([(9, 3), (5, 1)]))
    assert history[0] == [(0, 9), (3, 3)]
    # The last prompt token of each further answer is what its first token is drawn from.
    assert sorted(history[1]) == [(0, 1), (1, 1), (2, 1), (3, 2)]


def test_answers_beyond_the_most_at_once_wait_for_a_place():
    scheduler = make([(2, 1)] * 7)
    works, _ = step(scheduler)
    assert [work.sequence.order for work in works] == [0, 1, 2, 3, 4]
    for _ in range(9):
        step(scheduler)
    works, _ = step(scheduler)
    assert [work.sequence.order for work in works] == [5, 6]


def test_a_shared_block_is_copied_before_it_is_written():
    scheduler = make([(6, 3)])
    step(scheduler)
    shared = scheduler.running[0].blocks[1]
    _, copies = step(scheduler)
    assert [source for source, _ in copies] == [shared] * len(copies)
    assert len(copies) == 2
    assert len({sequence.blocks[0] for sequence in scheduler.running}) == 1


def test_where_blocks_run_out_the_youngest_wait_and_the_oldest_goes_on():
    scheduler = make([(4, 1)] * 4, blocks=7, new_tokens=12)
    history = run(scheduler)
    assert scheduler.preemptions > 0
    assert scheduler.pool.num_free == 7
    assert all((0, 1) in works for works in history[1:12])


@pytest.mark.parametrize("blocks", range(4, 24))
def test_everything_ends_with_any_number_of_blocks_that_hold_the_longest(blocks):
    history = run(make([(6, 3), (1, 2), (3, 2)], blocks=blocks))
    assert len(history) < 200


def test_after_new_weights_no_prompt_of_the_old_ones_is_shared():
    scheduler = make([(8, 6)])
    step(scheduler)
    step(scheduler)
    assert len(scheduler.running) == 5
    kept = scheduler.running[0]
    scheduler.remove(kept)
    kept.group.unfinished.remove(kept)
    works, _ = step(scheduler, epoch=1)
    newcomer = next(work for work in works if work.sequence.order == 5)
    assert newcomer.rows == 8


def test_drafts_are_cut_to_the_room_and_the_length_of_the_answer():
    from trainer.rl.engine.drafts import CopyIndex

    scheduler = make([(2, 1)], new_tokens=4)
    group = scheduler.waiting[0].group
    group.copies = CopyIndex(1)
    group.copies.add([0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1], 0)
    speculation = Speculation(longest=8, acceptance=1.0, fixed_s=1.0, row_s=0.0)
    step(scheduler)
    group.copies.add(scheduler.running[0].tokens, 0)
    works, _ = scheduler.plan(0, speculation)
    assert works[0].total_rows == 1 + len(works[0].draft)
    # One token is there and one comes with the forward: two more fit.
    assert len(works[0].draft) <= 2
