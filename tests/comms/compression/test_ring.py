"""The guarantees of comms/compression/ring.py, one by one, and of an exchange along such a ring."""

import pytest
import torch
import torch.distributed as dist

from comms.compression.config import CompressionConfig
from comms.compression.exchange import Exchange
from comms.compression.ring import gathered_rows, is_natural, summed
from tests.comms.compression.test_exchange import COMMON, METHODS
from tests.ranks import run_on_ranks

ORDER = (0, 2, 1, 3)
SHAPES = [(40, 30)]
"""Nothing travels dense."""

BY_ROWS = ("dgc", "ef", "top_k", "rand_k", "int8")
"""Methods whose messages are decoded one by one: no sum is formed on the way."""

ALL = (*BY_ROWS, "none", "powersgd")


def _finish(hops):
    while True:
        try:
            next(hops).wait()
        except StopIteration as end:
            return end.value


def _values(rank: int, numel: int) -> torch.Tensor:
    return torch.randn(numel, generator=torch.Generator().manual_seed(rank))


def _run(name: str, rank: int, order) -> list[torch.Tensor]:
    """Sums of three steps, two keys each, the order being taken up after the first."""
    # Sums on the way are rounded as their messages are.
    fp32 = {"values": "fp32"} if name == "powersgd" else {}
    config = CompressionConfig(**(COMMON | METHODS[name] | fp32))
    exchange = Exchange(config, group=dist.group.WORLD)
    found = []
    for step in range(3):
        if step == 1:
            exchange.order_ring(lambda ranks: order)
        flats = [_values(100 * step + 10 * key + rank, 1200) for key in range(2)]
        pending = [exchange.start(str(key), flat, SHAPES) for key, flat in enumerate(flats)]
        for one in pending:
            one.wait()
        exchange.commit()
        found += flats
    exchange.close()
    return found


def _body(rank: int) -> dict:
    group = dist.group.WORLD
    code = torch.arange(7, dtype=torch.uint8) + 10 * rank
    found = {"rows": _finish(gathered_rows(code, group, ORDER))}
    sent, alone = [], dist.batch_isend_irecv

    def watched(operations):
        sent.extend((o.group_peer, o.tensor.nbytes) for o in operations if o.op is dist.isend)
        return alone(operations)

    for numel in (1, 2, 9, 1000):
        values = _values(rank, numel)
        _finish(summed(values, group, ORDER))
        found[numel] = values
    dist.batch_isend_irecv = watched
    _finish(summed(_values(rank, 1000), group, ORDER))
    dist.batch_isend_irecv = alone
    found["sent"] = sent
    with pytest.raises(ValueError, match="each of the 4 places once"):
        Exchange(CompressionConfig(), group=group).order_ring(lambda ranks: (0, 1, 2, 2))
    for name in ALL:
        found[name] = _run(name, rank, ORDER), _run(name, rank, (1, 2, 3, 0))
    return found


@pytest.fixture(scope="module")
def results() -> list[dict]:
    return run_on_ranks(4, _body)


def test_gathered_rows_lie_by_place(results):
    for found in results:
        assert found["rows"].tolist() == [[10 * r + n for n in range(7)] for r in range(4)]


def test_sums_are_those_of_all_and_equal_on_all(results):
    for numel in (1, 2, 9, 1000):
        wanted = sum(_values(rank, numel) for rank in range(4))
        for found in results:
            assert torch.equal(found[numel], results[0][numel])
            torch.testing.assert_close(found[numel], wanted, rtol=1e-5, atol=1e-5)


def test_a_rank_sends_to_its_next_neighbour_alone(results):
    for rank, found in enumerate(results):
        after = ORDER[(ORDER.index(rank) + 1) % 4]
        assert {peer for peer, _ in found["sent"]} == {after}
        assert sum(count for _, count in found["sent"]) == 2 * 4 * 1000 * 3 // 4


@pytest.mark.parametrize("name", ALL)
def test_another_order_changes_no_sum(results, name):
    for found in results:
        for ordered, natural, first in zip(*found[name], results[0][name][0], strict=True):
            assert torch.equal(ordered, first)
            if name in BY_ROWS:
                assert torch.equal(ordered, natural)
            else:
                torch.testing.assert_close(ordered, natural, rtol=1e-2, atol=1e-4)


def test_a_ring_is_natural_wherever_it_begins():
    assert is_natural((0, 1, 2, 3))
    assert is_natural((2, 3, 0, 1))
    assert is_natural((0,))
    assert not is_natural((3, 2, 1, 0))
    assert not is_natural(ORDER)
