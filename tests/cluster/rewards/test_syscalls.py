"""The table of call numbers against the headers of this system."""

import platform
import re
from pathlib import Path

import pytest

from cluster.rewards.syscalls import MACHINES, numbers

HEADERS = Path("/usr/include")


def defined(*paths):
    found = {}
    for path in paths:
        for line in (HEADERS / path).read_text().splitlines():
            match = re.match(r"#define __NR(?:3264)?_(\w+)\s+(\d+)\s*$", line)
            if match:
                found.setdefault(match[1], int(match[2]))
    return found


def test_numbers_are_unique_on_each_machine():
    for machine in MACHINES.values():
        found = list(numbers(machine).values())
        assert len(found) == len(set(found)) > 70


def test_numbers_are_those_of_the_kernel():
    header = {
        "x86_64": "x86_64-linux-gnu/asm/unistd_64.h",
        "aarch64": "asm-generic/unistd.h",
    }.get(platform.machine(), "none")
    if not (HEADERS / header).is_file():
        pytest.skip(f"no kernel headers here ({header})")
    known = defined(header)
    renamed = {"newfstatat": "fstatat"} if platform.machine() == "aarch64" else {}
    for name, number in numbers(MACHINES[platform.machine()]).items():
        assert known[renamed.get(name, name)] == number, name
