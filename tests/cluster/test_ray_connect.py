"""Joining clusters that are not there, and what listens when one is started here."""

import os
import signal
import threading
import time
from pathlib import Path

import psutil
import pytest
import ray

from cluster.network import free_port
from cluster.ray_connect import connected, told_endings
from cluster.signals import StopRequested, StopSignals
from trainer.errors import InfrastructureError, RecipeError, ResourceError


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


# Ray is interrupted wherever it is, and may leave a file for the collector to close.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_sigterm_while_ray_starts_is_a_stop_like_any_other() -> None:
    def once_ray_has_the_signal(ours: object) -> None:
        deadline = time.monotonic() + 30
        while signal.getsignal(signal.SIGTERM) == ours and time.monotonic() < deadline:
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with StopSignals():
        ours = signal.getsignal(signal.SIGTERM)
        threading.Thread(target=once_ray_has_the_signal, args=(ours,)).start()
        with pytest.raises(StopRequested, match="SIGTERM while connecting"), connected("local"):
            pytest.fail("connected")
    assert not ray.is_initialized()
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_node_that_is_not_up_in_time_is_told_with_a_remedy() -> None:
    with pytest.raises(InfrastructureError, match="free disk space"), told_endings():
        raise Exception("The current node timed out during startup. This could happen")
    with pytest.raises(Exception, match="another"), told_endings():
        raise Exception("another")
