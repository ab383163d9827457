"""Pure: which hosts keep copies of which others' shares.

Guarantees, each asserted in tests/trainer/keeping/test_partners.py:
- no host keeps copies of its own shares, and none keeps two of the same;
- each host keeps copies for as many others as keep copies of its own;
- whoever knows the hosts by rank comes to the same answer;
- where there are fewer other hosts than copies wanted, there are fewer copies.
"""

from collections.abc import Sequence


def holders(hosts: Sequence[str], copies: int) -> dict[str, tuple[str, ...]]:
    """By host, those that keep copies of its shares. `hosts` are by rank; copies go to the hosts of
    the next ranks, which are the nearest where ranks are in order of their addresses."""
    ring = list(dict.fromkeys(hosts))
    count = min(copies, len(ring) - 1)
    return {
        host: tuple(ring[(place + offset) % len(ring)] for offset in range(1, count + 1))
        for place, host in enumerate(ring)
    }


def wards(hosts: Sequence[str], copies: int) -> dict[str, tuple[str, ...]]:
    """By host, those whose shares it keeps copies of."""
    found: dict[str, list[str]] = {host: [] for host in dict.fromkeys(hosts)}
    for host, others in holders(hosts, copies).items():
        for other in others:
            found[other].append(host)
    return {host: tuple(others) for host, others in found.items()}
