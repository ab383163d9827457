"""Interfaces and ports of cluster/network.py."""

import socket

from cluster.network import free_port, interface_of, interface_variables

INTERFACES = {"lo": ["127.0.0.1", "::1"], "eth0": ["10.0.0.5"], "ib0": ["192.168.1.5"]}


def test_the_interface_with_the_address_is_found() -> None:
    assert interface_of("192.168.1.5", INTERFACES) == "ib0"
    assert interface_of("127.0.0.2", INTERFACES) == "lo"
    assert interface_of("10.9.9.9", INTERFACES) is None


def test_gloo_and_nccl_are_told_the_interface_of_the_address() -> None:
    assert interface_variables("127.0.0.1") == {
        "GLOO_SOCKET_IFNAME": "lo",
        "NCCL_SOCKET_IFNAME": "lo",
    }
    assert interface_variables("203.0.113.77") == {}


def test_a_free_port_can_be_listened_on() -> None:
    with socket.create_server(("127.0.0.1", free_port("127.0.0.1"))) as server:
        assert server.getsockname()[1] > 0
