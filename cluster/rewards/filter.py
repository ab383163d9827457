"""A seccomp filter that lets a process compute and nothing else. Pure: builds bytes.

Invariants, each asserted in tests/cluster/rewards/test_filter.py by running the program:
- a call that cluster/rewards/syscalls.py does not list is refused with EPERM, on every architecture
  but the one asked for all calls are;
- listed calls with conditions are allowed exactly where all conditions hold;
- calls said to be absent fail with ENOSYS, as on an older kernel.
"""

import errno
import struct

from cluster.rewards.syscalls import ABSENT, MACHINES, Condition, conditions, numbers

LOAD, EQUALS, AND, RETURN = 0x20, 0x15, 0x54, 0x06
"""BPF_LD|W|ABS, BPF_JMP|JEQ|K, BPF_ALU|AND|K, BPF_RET|K of linux/bpf_common.h."""

ALLOW, REFUSE = 0x7FFF0000, 0x00050000
"""SECCOMP_RET_ALLOW and SECCOMP_RET_ERRNO, to which the error's number is added."""

NUMBER_AT, ARCHITECTURE_AT, ARGUMENTS_AT = 0, 4, 16
"""Offsets in struct seccomp_data."""

Instruction = tuple[int, int, int, int]
"""Code, places to jump where true, where false, constant."""


def filter_program(machine: str, own_pid: int) -> bytes | None:
    """The filter as an array of struct sock_filter; None for a machine whose calls are unknown.

    `own_pid` is the only process that may be signalled. Both machines store the lower half of an
    argument first.
    """
    known = MACHINES.get(machine)
    if known is None:
        return None
    refuse = (RETURN, 0, 0, REFUSE | errno.EPERM)
    program: list[Instruction] = [
        (LOAD, 0, 0, ARCHITECTURE_AT),
        (EQUALS, 1, 0, known.audit),
        refuse,
        (LOAD, 0, 0, NUMBER_AT),
    ]
    special = conditions(own_pid)
    for name, number in numbers(known).items():
        if name in ABSENT:
            body: list[Instruction] = [(RETURN, 0, 0, REFUSE | errno.ENOSYS)]
        else:
            body = [*_checks(special.get(name, ())), (RETURN, 0, 0, ALLOW)]
        program += [(EQUALS, 0, len(body), number), *body]
    program.append(refuse)
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in program)


def _checks(wanted: tuple[Condition, ...]) -> list[Instruction]:
    """Fall through where every condition holds, else refuse."""
    checks: list[Instruction] = []
    for condition in wanted:
        offset = ARGUMENTS_AT + 8 * condition.argument + 4 * condition.high
        checks += [(LOAD, 0, 0, offset), (AND, 0, 0, condition.mask)]
        last = len(condition.values)
        # A match jumps over the comparisons that are left and over the refusal.
        checks += [(EQUALS, last - i, 0, value) for i, value in enumerate(condition.values)]
        checks.append((RETURN, 0, 0, REFUSE | errno.EPERM))
    return checks
