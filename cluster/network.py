"""The interface that carries a host's address, and free ports on it."""

import socket
from collections.abc import Mapping, Sequence

import psutil


def interface_of(address: str, interfaces: Mapping[str, Sequence[str]]) -> str | None:
    """Name of the interface with `address`, or None. Any loopback address is the loopback's.

    `interfaces` gives the addresses of every interface.
    """
    wanted = "127.0.0.1" if address.startswith("127.") else address
    return next((name for name, held in interfaces.items() if wanted in held), None)


def local_interfaces() -> dict[str, list[str]]:
    """Interfaces of this host with their addresses."""
    return {
        name: [entry.address for entry in entries]
        for name, entries in psutil.net_if_addrs().items()
    }


def interface_variables(address: str) -> dict[str, str]:
    """What tells gloo and NCCL to use the interface of this host's `address`.

    Left alone they take the address of the host's name, which is often the loopback.
    """
    interface = interface_of(address, local_interfaces())
    if interface is None:
        return {}
    return {"GLOO_SOCKET_IFNAME": interface, "NCCL_SOCKET_IFNAME": interface}


def free_port(address: str) -> int:
    """A TCP port of `address` that nothing listens on now."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])
