"""The store of channels: where it is lost, another one serves."""

import time
from contextlib import closing
from datetime import timedelta

import ray
from torch.distributed import TCPStore

from cluster.preflight import living_nodes
from cluster.rl.channel_store import StoreKeeper


def test_where_the_store_is_lost_another_one_serves(local_cluster: None) -> None:
    with closing(StoreKeeper(living_nodes(ray.nodes())[0], start_limit_s=60.0)) as keeper:
        places = [keeper.open()]
        assert not keeper.lost(ray.wait(keeper.refs, timeout=0.2)[0])
        ray.kill(keeper._actor)
        until_s = time.monotonic() + 150
        while not keeper.lost(ray.wait(keeper.refs, timeout=0.2)[0]):
            assert time.monotonic() < until_s
        assert keeper.refs == [], "told once"
        places.append(keeper.open())
        host, port = places[1]
        store = TCPStore(host, port, is_master=False, timeout=timedelta(seconds=20))
        store.set("a", "b")
        assert store.get("a") == b"b"
        assert not keeper.lost(ray.wait(keeper.refs, timeout=0.2)[0])
