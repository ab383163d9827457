"""The mark of tests whose processes are confined."""

import os
import sys

import pytest

from cluster.rewards.filter import filter_program

NEEDS_CONFINEMENT = pytest.mark.skipif(
    not sys.platform.startswith("linux") or filter_program(os.uname().machine, 1) is None,
    reason="needs Linux on x86_64 or aarch64",
)
