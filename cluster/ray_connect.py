"""Start a Ray cluster of this machine, or join one; with a token either way."""

import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import ray
from ray._raylet import Config  # type: ignore[attr-defined]
from ray.exceptions import AuthenticationError, RayError

from cluster.signals import StopRequested
from trainer.errors import InfrastructureError, RecipeError, ResourceError

OBJECT_STORE_BYTES = 128 * 1024 * 1024
"""Only small records pass through it: tensors travel between the ranks themselves."""

_REACH_S = 5.0

_LOGS_HELP = (
    "The logs are in /tmp/ray/session_latest/logs; check free disk space, shared memory and busy "
    "ports"
)

_TOKEN_HELP = (
    "Both sides need the same token: copy the head's ~/.ray/auth_token here (or set "
    "RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH). A cluster that was started without "
    "RAY_AUTH_MODE=token asks for none: restart it with it, or set RAY_AUTH_MODE=disabled here to "
    "join it unprotected"
)


@contextmanager
def connected(address: str) -> Iterator[None]:
    """Be connected to Ray inside the context: `local`, `auto`, or a head's host:port.

    A process that is connected already stays as it is, before and after. On leaving, only what
    was started here is shut down.

    Raises ResourceError where there is no cluster, RecipeError for an address of another kind, and
    InfrastructureError where a cluster cannot be started; StopRequested where SIGTERM comes first.
    """
    if ray.is_initialized():
        yield
        return
    reread_settings()
    if address == "local":
        _start()
    else:
        _join(address)
    try:
        yield
    finally:
        ray.shutdown()


def reread_settings() -> None:
    """Have Ray take over environment variables set after it was first imported."""
    Config.initialize("")


@contextmanager
def told_endings() -> Iterator[None]:
    """Around `ray.init`: tell what Ray only exits or raises a bare Exception for.

    Raises StopRequested where SIGTERM came, which Ray's own handler turns into SystemExit, and
    InfrastructureError where the node did not come up in Ray's time.
    """
    try:
        yield
    except SystemExit as error:
        ray.shutdown()
        raise StopRequested("stopped by SIGTERM while connecting, before training began") from error
    except Exception as error:
        if "timed out during startup" in str(error):
            raise InfrastructureError(
                f"Ray did not start in time: {_first_line(error)} {_LOGS_HELP}"
            ) from error
        raise


def _start() -> None:
    try:
        with told_endings():
            ray.init(
                address="local",
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                log_to_driver=False,
                logging_level=logging.ERROR,
                _node_ip_address="127.0.0.1",
            )
    except (RayError, RuntimeError, OSError, ValueError) as error:
        raise InfrastructureError(
            f"cannot start a Ray cluster on this machine: {error}. {_LOGS_HELP}"
        ) from error


def _join(address: str) -> None:
    if "://" in address:
        raise RecipeError(
            f"cluster.address={address} is no address of a head node: give host:port, `auto` or "
            "`local`, or send the recipe to a dashboard URL with `braid submit`"
        )
    if address != "auto":
        _check_reachable(address)
    try:
        with told_endings():
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except AuthenticationError as error:
        raise ResourceError(
            f"the Ray cluster at {address} did not accept this driver: {_first_line(error)}. "
            f"{_TOKEN_HELP}"
        ) from error
    except (ConnectionError, RayError, RuntimeError) as error:
        raise ResourceError(
            f"no Ray cluster can be joined at cluster.address={address}: {_first_line(error)}. "
            "Start one with `RAY_AUTH_MODE=token ray start --head`, or set cluster.address=local. "
            "If one is up there, it may have refused the token, which Ray does not tell. "
            f"{_TOKEN_HELP}"
        ) from error


def _check_reachable(address: str) -> None:
    """Ray waits a minute for a head that is not there and then ends the process."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise RecipeError(f"cluster.address={address} is neither host:port nor `auto` nor `local`")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_REACH_S).close()
    except OSError as error:
        raise ResourceError(
            f"nothing answers at cluster.address={address} ({error}); is the head node up and the "
            "port its GCS port (6379 unless `ray start` was told another)?"
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
