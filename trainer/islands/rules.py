"""Pure: which batches can be shared out among which islands.

Guarantees, each asserted in tests/trainer/islands/test_rules.py:
- every island has a share, and a sequence in every step;
- what is refused names the value, and one that goes.
"""

from comms.config import IslandConfig
from trainer.islands.share import dealt, enough_for_all


def problem_of(
    config: IslandConfig, *, islands: int, sequences: int, unit: int, key: str
) -> str | None:
    """Which rule a batch of so many `sequences` breaks, with what keeps it; None where it keeps
    all. `key` sets the batch, and a sequence is `unit` of it."""
    shares = config.shares
    if shares == "equal":
        if sequences >= islands:
            return None
        return (
            f"{key} makes {sequences} sequences a step, which is not one for each of "
            f"parallel.island={islands}; choose {key}={islands * unit} or more"
        )
    if len(shares) != islands:
        return (
            f"comms.island.shares={list(shares)} has {len(shares)} values, and parallel.island="
            f"{islands}; write one for each island, or equal"
        )
    weights = config.weights(islands)
    counts = dealt(sequences, weights)
    if all(counts):
        return None
    return (
        f"comms.island.shares={list(shares)} of the {sequences} sequences that {key} makes a step "
        f"are {list(counts)}, but every island needs one; choose shares that are nearer to each "
        f"other, or {key}={enough_for_all(weights) * unit} or more"
    )
