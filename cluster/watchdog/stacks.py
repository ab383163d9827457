"""Which rank's stack differs from those of the others.

Ranks of one job run the same program, so the stacks of a job that stands still fall into few
groups, and the rank that holds it up is not where the others wait (ByteRobust, arXiv 2509.16293,
"aggregation analysis").

Pure. Guarantees, each asserted in tests/cluster/watchdog/test_stacks.py:
- the text of `py-spy dump`, with or without native frames, and of `faulthandler` is understood;
- stacks are the same whatever their addresses, thread numbers and lines within a function;
- the odd ranks are those outside the largest group; where groups are equally large, those that do
  not wait in a collective while others do;
- a rank without a stack is a group of its own, never part of another.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

TRAINING = ("train_step", "run_step", "train")
"""Functions by which the thread that trains is known among the threads of a process."""

WAITING = re.compile(
    r"all_?reduce|all_?gather|reduce_?scatter|all_?to_?all|broadcast|barrier|recv|"
    r"(^|[._])wait($|[._( ])|c10d|gloo|nccl|synchronize",
    re.IGNORECASE,
)
"""Frames in which a rank waits for others."""

_SPY_THREAD = re.compile(r'^Thread \S+ \(.*?\)(?:: "(?P<name>.*)")?')
_SPY_FRAME = re.compile(r"^ {4}(?P<function>\S.*?) \((?P<file>[^()]*?)(?::\d+)?\)$")
_FAULT_THREAD = re.compile(r"^(Current thread|Thread) 0x[0-9a-f]+(?: \[(?P<name>.*?)\])?.*:$")
_FAULT_FRAME = re.compile(r'^ +File "(?P<file>.*?)", line \d+ in (?P<function>.*)$')
_ADDRESS = re.compile(r"^0x[0-9a-f]+$")


@dataclass(frozen=True)
class Thread:
    """One thread; frames as `function (file)`, the innermost first."""

    name: str
    frames: tuple[str, ...]


@dataclass(frozen=True)
class StackGroup:
    """Ranks that are at the same place."""

    ranks: tuple[int, ...]
    frames: tuple[str, ...]

    @property
    def waiting(self) -> bool:
        """Whether they wait for other ranks."""
        return any(WAITING.search(frame) for frame in self.frames[:_DEEP])


_DEEP = 12
"""Innermost frames that say what a thread does."""


def threads(dump: str) -> list[Thread]:
    """The threads in the text of one process, in its order."""
    found: list[tuple[str, list[str]]] = []
    for line in dump.splitlines():
        head = _SPY_THREAD.match(line) or _FAULT_THREAD.match(line)
        if head:
            found.append((head["name"] or "", []))
            continue
        frame = _SPY_FRAME.match(line) or _FAULT_FRAME.match(line)
        if frame and found and not _ADDRESS.match(frame["function"]):
            name = frame["file"].replace("\\", "/").rsplit("/", 1)[-1]
            found[-1][1].append(f"{frame['function'].rsplit('.', 1)[-1]} ({name})")
    return [Thread(name, tuple(frames)) for name, frames in found]


def training_thread(found: Sequence[Thread], inside: Sequence[str] = TRAINING) -> Thread | None:
    """The thread that trains; else the main one, else the last, which both formats put at the
    bottom; None where there is no thread."""
    for thread in found:
        if any(frame.split(" (")[0] in inside for frame in thread.frames):
            return thread
    main = [thread for thread in found if thread.name == "MainThread"]
    chosen = main or list(found[-1:])
    return chosen[0] if chosen else None


def group_stacks(dumps: Mapping[int, str]) -> list[StackGroup]:
    """Ranks by the stack of their training thread, the largest group first."""
    by_frames: dict[tuple[str, ...], list[int]] = {}
    bare = []
    for rank, dump in sorted(dumps.items()):
        thread = training_thread(threads(dump))
        if thread is None or not thread.frames:
            bare.append(StackGroup((rank,), ()))
            continue
        by_frames.setdefault(thread.frames, []).append(rank)
    groups = [StackGroup(tuple(ranks), frames) for frames, ranks in by_frames.items()]
    return sorted(groups, key=lambda group: (-len(group.ranks), group.ranks)) + bare


def odd_ranks(groups: Sequence[StackGroup]) -> tuple[int, ...]:
    """The ranks that are not where the others are; empty where nobody stands out."""
    if len(groups) < 2:
        return ()
    working = [group for group in groups if group.frames and not group.waiting]
    if working and len(working) < len(groups) and len(working[0].ranks) < _total(groups) / 2:
        return tuple(sorted(rank for group in working for rank in group.ranks))
    largest = len(groups[0].ranks)
    if len(groups[1].ranks) < largest:
        return tuple(sorted(rank for group in groups[1:] for rank in group.ranks))
    working_ranks = {rank for group in working for rank in group.ranks}
    return tuple(sorted(working_ranks)) if 0 < len(working_ranks) < _total(groups) else ()


def sentences(dumps: Mapping[int, str], *, frames: int = 6) -> list[str]:
    """What the stacks say, for the evidence of a finding: a line per group, then who is odd."""
    groups = group_stacks(dumps)
    lines = [
        f"ranks {list(group.ranks)}: {' < '.join(group.frames[:frames]) or 'no stack'}"
        for group in groups
    ]
    odd = odd_ranks(groups)
    return [*lines, f"the odd ones are ranks {list(odd)}"] if odd else lines


def _total(groups: Sequence[StackGroup]) -> int:
    return sum(len(group.ranks) for group in groups)
