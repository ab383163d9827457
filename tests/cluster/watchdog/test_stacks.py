"""The guarantees of cluster/watchdog/stacks.py."""

import pytest

from cluster.watchdog.stacks import group_stacks, odd_ranks, sentences, threads

WAITING = """Process 4242: python -m trainer
Python v3.11.7 (/usr/bin/python3.11)

Thread {tid} (idle): "MainThread"
    poll (libc.so.6)
    0x7ff34b84524a (libgloo.so)
    all_reduce (torch/distributed/distributed_c10d.py:{line})
    vote (trainer/vote.py:40)
    train_step (trainer/step.py:60)
    <module> (main.py:7)
Thread 77 (idle): "heartbeat"
    wait (threading.py:320)
    _bootstrap (threading.py:1002)
"""

READING = """Thread 99 (active): "MainThread"
    read (feed.py:9)
    take (feed.py:30)
    train_step (trainer/step.py:12)
    <module> (main.py:7)
"""

FAULT = """Thread 0x00007f2a1b7fe700 [heartbeat] (most recent call first):
  File "/lib/threading.py", line 320 in wait
  File "/lib/threading.py", line 1002 in _bootstrap

Current thread 0x00007f2a2c9c1740 (most recent call first):
  File "/code/feed.py", line 9 in read
  File "/code/feed.py", line 30 in take
  File "/code/trainer/step.py", line 12 in train_step
  File "/code/main.py", line 7 in <module>
"""


def waiting(tid=1, line=2800):
    return WAITING.format(tid=tid, line=line)


def test_both_formats_are_understood_with_native_frames():
    main, heart = threads(waiting())
    assert (main.name, heart.name) == ("MainThread", "heartbeat")
    assert main.frames[:2] == ("poll (libc.so.6)", "all_reduce (distributed_c10d.py)")
    beside, current = threads(FAULT)
    assert beside.frames[0] == "wait (threading.py)"
    assert current.frames == threads(READING)[0].frames


def test_addresses_threads_and_lines_make_no_difference():
    (group,) = group_stacks({0: waiting(1, 2800), 1: waiting(2, 2801)})
    assert group.ranks == (0, 1)
    assert group.waiting


@pytest.mark.parametrize("odd", [READING, FAULT])
def test_the_rank_outside_the_largest_group_is_odd(odd):
    dumps = {0: waiting(), 1: waiting(), 2: odd, 3: waiting()}
    groups = group_stacks(dumps)
    assert odd_ranks(groups) == (2,)
    assert sentences(dumps)[-1] == "the odd ones are ranks [2]"


def test_of_two_ranks_the_one_that_does_not_wait_is_odd():
    assert odd_ranks(group_stacks({0: waiting(), 1: READING})) == (1,)


def test_where_all_are_alike_nobody_is_odd():
    assert odd_ranks(group_stacks({0: READING, 1: READING})) == ()
    assert odd_ranks(group_stacks({})) == ()


def test_a_rank_without_a_stack_is_a_group_of_its_own():
    groups = group_stacks({0: waiting(), 1: "", 2: waiting()})
    assert [group.ranks for group in groups] == [(0, 2), (1,)]
    assert odd_ranks(groups) == (1,)
