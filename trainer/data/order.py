"""The order of blocks, documents and rows: a function of (seed, epoch) alone. Free of torch.

Guarantees, each asserted in tests/trainer/data/test_order.py:
- every order is a permutation;
- the same seed, epoch and subject give the same order on every machine and with any version of
  numpy: orders are sorted raw words of Philox (Salmon et al. 2011), whose stream is fixed;
- another seed, epoch or subject gives an independent one.
"""

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

WORD = 1 << 64


class Subject(IntEnum):
    """What is being ordered."""

    BLOCKS = 0
    DOCUMENTS = 1
    ROWS = 2


def permutation(
    count: int, *, seed: int, epoch: int, subject: Subject, number: int = 0
) -> NDArray[np.int64]:
    """An order of `count` things; `number` tells blocks, or groups of them, apart."""
    counter = np.array([0, number, epoch, subject], dtype=np.uint64)
    key = np.array([seed % WORD, 0], dtype=np.uint64)
    words = np.random.Philox(counter=counter, key=key).random_raw(count)
    return np.argsort(words, kind="stable")


def block_order(count: int, *, seed: int, epoch: int) -> NDArray[np.int64]:
    """The order in which an epoch takes the blocks."""
    return permutation(count, seed=seed, epoch=epoch, subject=Subject.BLOCKS)
