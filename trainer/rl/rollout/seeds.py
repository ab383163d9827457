"""Seeds of samples: a function of run, prompt, sample and turn alone. No torch."""

import hashlib


def sample_seed(run_seed: int, number: int, sample: int, turn: int) -> int:
    """Below 2^63, the same whoever samples, so that an answer is the same wherever it goes on."""
    text = f"rollout/{run_seed}/{number}/{sample}/{turn}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1
