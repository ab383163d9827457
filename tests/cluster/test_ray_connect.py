"""Joining clusters that are not there, and what listens when one is started here."""

from pathlib import Path

import psutil
import pytest
import ray

from cluster.network import free_port
from cluster.ray_connect import connected
from trainer.errors import RecipeError, ResourceError


def test_an_address_where_nothing_listens() -> None:
    port = free_port("127.0.0.1")
    with pytest.raises(ResourceError, match="nothing answers"), connected(f"127.0.0.1:{port}"):
        pytest.fail("connected to nothing")


@pytest.mark.parametrize("address", ["http://127.0.0.1:8265", "ray://head:10001", "head"])
def test_addresses_of_another_kind(address: str) -> None:
    with pytest.raises(RecipeError, match="address"), connected(address):
        pytest.fail("connected to a wrong address")


def test_a_cluster_of_this_machine_has_a_token_and_listens_on_loopback_alone() -> None:
    with connected("local"):
        this = psutil.Process()
        ours = {process.pid for process in (this, *this.children(recursive=True))}
        addresses = {
            connection.laddr.ip
            for connection in psutil.net_connections("tcp")
            if connection.status == psutil.CONN_LISTEN and connection.pid in ours
        }
        assert addresses
        assert addresses <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
        assert (Path.home() / ".ray" / "auth_token").exists()
        with connected("auto"):
            assert ray.cluster_resources()["CPU"] >= 1
        assert ray.is_initialized(), "what was connected before stays so"
    assert not ray.is_initialized()
