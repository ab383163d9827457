"""The filter, run by a small interpreter of the kernel's instructions."""

import errno
import struct

import pytest

from cluster.rewards.filter import ALLOW, filter_program
from cluster.rewards.syscalls import MACHINES, numbers

PID = 4321
THREAD = 0x10000


def run(machine, number, *arguments, audit=None):
    """What the filter returns for a call."""
    program = filter_program(machine, PID)
    steps = [struct.unpack_from("<HBBI", program, at) for at in range(0, len(program), 8)]
    given = list(arguments) + [0] * (6 - len(arguments))
    audit = MACHINES[machine].audit if audit is None else audit
    data = struct.pack("<IIQ6Q", number, audit, 0, *given)
    value, at = 0, 0
    while True:
        code, if_true, if_false, constant = steps[at]
        at += 1
        match code:
            case 0x20:
                (value,) = struct.unpack_from("<I", data, constant)
            case 0x54:
                value &= constant
            case 0x15:
                at += if_true if value == constant else if_false
            case 0x06:
                return constant


def verdict(*call, **given):
    """`allow`, or the name of the error."""
    found = run(*call, **given)
    return "allow" if found == ALLOW else errno.errorcode[found & 0xFFFF]


@pytest.fixture(params=sorted(MACHINES))
def machine(request):
    return request.param


@pytest.fixture
def number_of(machine):
    return numbers(MACHINES[machine])


NEVER_TEXT = {
    "x86_64": "41 42 44 49 53 57 58 59 62 82 83 84 85 87 90 92 101 160 165 200 263 264 272 298 "
    "308 310 311 319 321 322 323 425 434 1073741825 9999",
    "aarch64": "33 34 35 36 37 38 40 45 46 53 54 97 117 129 130 164 198 199 200 203 206 221 241 "
    "268 270 271 279 280 281 282 425 434 9999",
}
NEVER = {machine: [int(number) for number in text.split()] for machine, text in NEVER_TEXT.items()}
"""Sockets, fork, exec, kill, rename, unlink, link, truncate, chmod, chown, ptrace, mount, setns,
unshare, memory of others, memfd, bpf, userfaultfd, io_uring, pidfd, calls of other ABIs."""


def test_calls_that_are_not_listed_are_refused(machine):
    assert {verdict(machine, number) for number in NEVER[machine]} == {"EPERM"}


def test_another_architecture_is_refused_whatever_it_asks(machine):
    other = next(m.audit for name, m in MACHINES.items() if name != machine)
    assert verdict(machine, numbers(MACHINES[machine])["read"], audit=other) == "EPERM"


@pytest.mark.parametrize("name", ["read", "write", "mmap", "futex", "exit_group", "getrandom"])
def test_computing_is_allowed(machine, number_of, name):
    assert verdict(machine, number_of[name], 2**64 - 1, 2**64 - 1) == "allow"


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("openat", (0, 0, 0o2000000), "allow"),  # O_CLOEXEC
        ("openat", (0, 0, 0o1), "EPERM"),
        ("openat", (0, 0, 0o2), "EPERM"),
        ("openat", (0, 0, 0o100), "EPERM"),
        ("openat", (0, 0, 0o1000), "EPERM"),
        ("clone", (THREAD | 0x3D0F00,), "allow"),
        ("clone", (17,), "EPERM"),
        ("clone3", (0,), "ENOSYS"),
        ("openat2", (0,), "ENOSYS"),
        ("ioctl", (0, 0x5401), "allow"),
        ("ioctl", (0, 0x5412), "EPERM"),  # TIOCSTI
        ("fcntl", (0, 2), "allow"),
        ("fcntl", (0, 8), "EPERM"),  # F_SETOWN
        ("prctl", (15,), "allow"),
        ("prctl", (1,), "EPERM"),  # PR_SET_PDEATHSIG
        ("prlimit64", (0, 7, 0), "allow"),
        ("prlimit64", (0, 7, 0x1000), "EPERM"),
        ("prlimit64", (0, 7, 0x100000000), "EPERM"),
        ("tgkill", (PID, 1, 6), "allow"),
        ("tgkill", (PID + 1, 1, 6), "EPERM"),
    ],
)
def test_conditions_on_arguments(machine, number_of, name, arguments, expected):
    assert verdict(machine, number_of[name], *arguments) == expected


def test_an_unknown_machine_has_no_filter():
    assert filter_program("riscv64", PID) is None
