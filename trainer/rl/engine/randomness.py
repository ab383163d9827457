"""Random numbers as a function of a seed and a place, so that answers do not depend on each other.

Guarantees, asserted in tests/trainer/rl/engine/test_randomness.py:
- a number depends on its seed and index alone, bitwise, on every machine;
- numbers of one seed, and of one index over seeds, are uniform and uncorrelated.
"""

import numpy as np
from numpy.typing import NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def uniforms(seeds: NDArray[np.int64], indexes: NDArray[np.int64]) -> NDArray[np.float64]:
    """One number in [0, 1), a multiple of 2^-53, per seed and index.

    Two rounds of SplitMix64's finaliser (Steele, Lea, Flood 2014).
    """
    words = _mixed(seeds.astype(np.uint64) + _GOLDEN)
    words = _mixed(words + _GOLDEN * indexes.astype(np.uint64))
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mixed(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
