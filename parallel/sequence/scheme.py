"""Pure: which attention schemes a group can use, and which is the fastest.

Guarantees, each asserted in tests/parallel/sequence/test_scheme.py:
- every possible scheme has the degree, divides the heads and keeps its Ulysses ranks together;
- windowed attention is given to Ulysses alone;
- of all possible schemes the chosen one takes the least time and, of those that take it, sends the
  fewest bytes; so queries travel back only where that wins.
"""

from dataclasses import dataclass
from math import gcd

from parallel.layout import divisors
from parallel.sequence.stretches import AttentionScheme, padding_multiple, token_ranges
from parallel.sequence.volume import AttentionBytes, attention_bytes

__all__ = [
    "AttentionBytes",
    "AttentionScheme",
    "Links",
    "attention_bytes",
    "choose_scheme",
    "padding_multiple",
    "possible_schemes",
    "predict_attention",
    "token_ranges",
]


@dataclass(frozen=True, kw_only=True)
class Links:
    """Rates at which one rank sends, bytes per second."""

    inside_bytes_per_s: float
    """To a rank of its own host."""

    between_bytes_per_s: float
    """To a rank of another host, alone."""

    host_bytes_per_s: float | None = None
    """All ranks of a host together, to other hosts; None is a link per rank."""

    latency_s: float = 0.0
    """Before each message."""

    overlap: float = 1.0
    """How much of a transfer compute can hide; 0 where copies take the cores that compute needs,
    as between CPU ranks of one host."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.overlap <= 1.0:
            raise ValueError(f"overlap must be in [0, 1], got {self.overlap}")

    def between(self, senders: int) -> float:
        """Rate of each of `senders` ranks of a host that send to other hosts at once."""
        if self.host_bytes_per_s is None:
            return self.between_bytes_per_s
        return min(self.between_bytes_per_s, self.host_bytes_per_s / senders)


def possible_schemes(
    degree: int, *, num_heads: int, num_kv_heads: int, windowed: bool, ranks_per_host: int
) -> list[AttentionScheme]:
    """All schemes of `degree` ranks, where groups start at a multiple of their size.

    Ulysses takes any degree that divides the query heads; the ring any degree at all. Ulysses
    ranks fill hosts or lie inside one. Empty where the layer is windowed and `degree` does not
    divide the heads. Raises ValueError where the key heads do not divide the query heads.
    """
    if degree < 1 or ranks_per_host < 1:
        raise ValueError(
            f"degree and ranks_per_host must be positive, got {degree} and {ranks_per_host}"
        )
    if num_heads % num_kv_heads:
        raise ValueError(f"{num_kv_heads} key heads do not divide {num_heads} query heads")
    found = []
    for ulysses in divisors(gcd(degree, num_heads)):
        ring = degree // ulysses
        inside, over = ranks_per_host % ulysses == 0, ulysses % ranks_per_host == 0
        if (windowed and ring > 1) or (degree > ranks_per_host and not inside and not over):
            continue
        found.append(AttentionScheme(ulysses=ulysses, ring=ring))
        if ring == 1:
            continue
        found.append(AttentionScheme(ulysses=ulysses, ring=ring, backward="queries"))
        hosts = _outer_ring(degree, ulysses, ranks_per_host)
        if hosts > 1:
            found += [
                AttentionScheme(ulysses=ulysses, ring=ring, hosts=hosts),
                AttentionScheme(ulysses=ulysses, ring=ring, hosts=hosts, backward="queries"),
            ]
    return found


def _outer_ring(degree: int, ulysses: int, ranks_per_host: int) -> int:
    """Hosts of a double ring, 1 where there would be one ring only."""
    if degree % ranks_per_host or ranks_per_host % ulysses or ranks_per_host == ulysses:
        return 1
    return degree // ranks_per_host


@dataclass(frozen=True, kw_only=True)
class AttentionTime:
    """Seconds of one layer's attention on one rank, forward and backward."""

    compute_s: float
    exposed_s: float
    """Communication that compute does not hide."""

    @property
    def total_s(self) -> float:
        """Both together."""
        return self.compute_s + self.exposed_s


def predict_attention(
    sent: AttentionBytes,
    scheme: AttentionScheme,
    *,
    compute_s: float,
    links: Links,
    ranks_per_host: int,
) -> AttentionTime:
    """Time of a scheme that sends `sent`, where the forward of one rank's share computes
    `compute_s` and the backward 5/2 of it.

    All-to-alls are exposed; a hop of the ring is exposed where it takes longer than the block
    that is computed meanwhile.
    """
    outer, inner = scheme.hosts, scheme.ring // scheme.hosts
    flat_across = outer == 1 and scheme.degree > ranks_per_host
    # A flat ring leaves a host through one Ulysses block, a double ring through every rank.
    senders = min(scheme.ulysses if outer == 1 else ranks_per_host, ranks_per_host)
    far = links.between(senders)
    near = far if flat_across else links.inside_bytes_per_s

    def hop_s(sent_bytes: int, bytes_per_s: float) -> float:
        return links.latency_s + sent_bytes / bytes_per_s

    timing = _Timing(links.overlap)

    step_s = compute_s / scheme.ring
    inner_s = timing.forward_s(inner, step_s, hop_s(sent.keys, near))
    forward_s = timing.forward_s(outer, inner_s, hop_s(sent.keys, far))
    back = [(hop_s(sent.read, rate), hop_s(sent.sums, rate)) for rate in (near, far)]
    step_s *= 2.5
    late_s = step_s * sent.late_share
    if outer == 1:
        backward_s = timing.backward_s(inner, step_s, late_s, *back[0])
    else:
        inner_s = timing.backward_s(inner, step_s, 0.0, *back[0])
        backward_s = timing.backward_s(outer, inner_s, late_s, *back[1])
    exchange_s = _exchange_s(sent.exchange, scheme.ulysses, links, ranks_per_host)
    exposed_s = forward_s + backward_s + 4 * exchange_s - 3.5 * compute_s
    return AttentionTime(compute_s=3.5 * compute_s, exposed_s=max(0.0, exposed_s))


@dataclass(frozen=True)
class _Timing:
    """Time of a ring's steps, where `overlap` of a transfer can be hidden."""

    overlap: float

    def forward_s(self, ring: int, step_s: float, hop_s: float) -> float:
        """Every hop runs beside a step; the last step has none."""
        return (ring - 1) * self._beside(step_s, hop_s) + step_s

    def backward_s(
        self, ring: int, step_s: float, late_s: float, read_s: float, sums_s: float
    ) -> float:
        """As a forward, with sums that follow one step behind; `late_s` of the first step's
        compute is kept for the last hop of the sums."""
        if ring == 1:
            return step_s
        hops_s = self._beside(step_s - late_s, read_s) + self._beside(late_s, sums_s)
        return hops_s + step_s + (ring - 2) * self._beside(step_s, read_s + sums_s)

    def _beside(self, compute_s: float, transfer_s: float) -> float:
        hidden_s = min(compute_s, transfer_s * self.overlap)
        return compute_s + transfer_s - hidden_s


def _exchange_s(sent_bytes: int, ulysses: int, links: Links, ranks_per_host: int) -> float:
    """Half of a direction's all-to-alls: each is one of two of about equal size."""
    if ulysses == 1:
        return 0.0
    inside = min(ulysses, ranks_per_host)
    inside_share, between_share = (inside - 1) / (ulysses - 1), (ulysses - inside) / (ulysses - 1)
    return links.latency_s + sent_bytes / 2 * max(
        inside_share / links.inside_bytes_per_s, between_share / links.between(inside)
    )


_SAME_TIME = 1.001
"""Predictions this close are called equal, and bytes decide."""


def choose_scheme(
    tokens: int,
    degree: int,
    *,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    element_bytes: int,
    links: Links,
    flops_per_s: float,
    windowed: bool,
    ranks_per_host: int,
    causal_pairs: float | None = None,
) -> tuple[AttentionScheme, str]:
    """The fastest scheme for `tokens` shared by `degree` ranks, and why.

    `causal_pairs` are the (query, key) pairs inside documents; None is one document. Raises
    ValueError where no scheme is possible.
    """
    candidates = possible_schemes(
        degree,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        windowed=windowed,
        ranks_per_host=ranks_per_host,
    )
    if not candidates:
        fitting = [d for d in divisors(num_heads) if ranks_per_host % d == 0]
        raise ValueError(
            f"no attention scheme for a group of {degree}: windowed layers need a degree that "
            f"divides their {num_heads} heads and fits hosts of {ranks_per_host}; choose one of "
            f"{fitting}"
        )
    pairs = tokens * tokens / 2 if causal_pairs is None else causal_pairs
    compute_s = 4 * pairs * num_heads * head_dim / degree / flops_per_s
    rated = []
    for scheme in candidates:
        sent = attention_bytes(
            tokens,
            scheme,
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            element_bytes=element_bytes,
        )
        time = predict_attention(
            sent, scheme, compute_s=compute_s, links=links, ranks_per_host=ranks_per_host
        )
        rated.append((time, sent, scheme))
    fastest_s = min(time.total_s for time, _, _ in rated)
    close = [entry for entry in rated if entry[0].total_s <= fastest_s * _SAME_TIME]
    best = min(close, key=lambda entry: entry[1].forward + entry[1].backward)
    return best[2], _reason(best, rated)


_Rated = tuple[AttentionTime, AttentionBytes, AttentionScheme]


def _reason(best: _Rated, rated: list[_Rated]) -> str:
    """The choice in words, beside the next best."""
    words = f"{best[2]}: {_figures(best)}"
    others = sorted((r for r in rated if r is not best), key=lambda r: r[0].total_s)
    return f"{words}; next {others[0][2]}: {_figures(others[0])}" if others else words


def _figures(entry: _Rated) -> str:
    time, sent, _ = entry
    megabytes = (sent.forward + sent.backward) / 1e6
    return (
        f"{time.total_s * 1e3:.3g} ms, {time.exposed_s * 1e3:.3g} ms of it exposed, "
        f"{megabytes:.3g} MB"
    )
