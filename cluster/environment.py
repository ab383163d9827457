"""The environment variables this package sets, and the only functions that touch them.

A variable that the user set is never changed.
"""

import os
from collections.abc import Mapping

RAY_DEFAULTS: Mapping[str, str] = {
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray warns on import-time defaults that it will change; this is the coming default.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
"""Every Ray process that serves or joins a cluster asks for a token and reports to nobody."""

LOOPBACK_DEFAULTS: Mapping[str, str] = {
    # Ray then listens on 127.0.0.1 alone, metrics included, on every system and not only on those
    # it was made for.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
}
"""For a cluster of this machine only."""


def set_unless_set(defaults: Mapping[str, str]) -> None:
    """Set each variable that is not set yet. Ray reads its own when it is first imported."""
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


def replace(name: str, value: str) -> None:
    """Set a variable that Ray, not the user, has set for this process."""
    os.environ[name] = value


def variables_without(prefix: str) -> dict[str, str]:
    """This process's variables, less those that begin with `prefix`: for a child that must not
    inherit what was meant for this process alone."""
    return {name: value for name, value in os.environ.items() if not name.startswith(prefix)}
