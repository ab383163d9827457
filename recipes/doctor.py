"""Whether this machine can train, finding by finding. Pure: facts in, verdicts out.

Guarantees, each asserted in tests/recipes/test_doctor.py:
- every problem has a remedy;
- an untested version is a note, a missing or too old one a problem.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from recipes.machine import Machine
from recipes.wording import GIB, gib

FREE_DISK_BYTES = 2 * GIB
"""Room for a small run with its checkpoints and token cache."""

MEMORY_BYTES = 4 * GIB
"""Room for Ray and two small workers."""

SHARED_MEMORY_BYTES = 64 * 1024**2
"""Room for Ray's object store, which carries no tensors here."""

Verdict = Literal["ok", "note", "problem"]


@dataclass(frozen=True)
class Finding:
    """One thing looked at."""

    name: str
    verdict: Verdict
    found: str
    remedy: str = ""

    def with_remedy(self) -> str:
        """What was found, and what to do about it."""
        return f"{self.found} -> {self.remedy}" if self.remedy else self.found


def examine(machine: Machine, tested: Mapping[str, Any]) -> list[Finding]:
    """All findings. `tested` is the content of tested_versions.json."""
    return [
        _version("python", machine.python, {**tested["python"], "required": True, "enables": ""}),
        *(
            _version(name, machine.packages[name], entry)
            for name, entry in tested["packages"].items()
        ),
        *_hardware(machine),
        _run_dir(machine),
        _ray_auth(machine),
    ]


def _version(name: str, found: str | None, entry: Mapping[str, Any]) -> Finding:
    enables = f" for {entry['enables']}" if entry["enables"] else ""
    wanted = f"{name}=={entry['tested'][-1]}.*"
    if found is None:
        verdict: Verdict = "problem" if entry["required"] else "note"
        return Finding(name, verdict, f"missing, needed{enables}", f"pip install '{wanted}'")
    if _numbers(found) < _numbers(entry["minimum"]):
        remedy = f"pip install '{wanted}'" if name != "python" else f"use Python {entry['tested']}"
        return Finding(name, "problem", f"{found}, older than {entry['minimum']}", remedy)
    if not any(_same_series(found, series) for series in entry["tested"]):
        tested = ", ".join(entry["tested"])
        return Finding(name, "note", f"{found}, not among the tested {tested}")
    return Finding(name, "ok", found)


def _numbers(version: str) -> tuple[int, ...]:
    numbers = []
    for part in version.split("+")[0].split("."):
        if not part.isdigit():
            break
        numbers.append(int(part))
    return tuple(numbers)


def _same_series(found: str, series: str) -> bool:
    wanted = _numbers(series)
    return _numbers(found)[: len(wanted)] == wanted


def _hardware(machine: Machine) -> Iterator[Finding]:
    yield Finding("cores", "ok" if machine.cores >= 2 else "note", str(machine.cores))
    enough = machine.memory_bytes >= MEMORY_BYTES
    yield Finding(
        "memory",
        "ok" if enough else "problem",
        gib(machine.memory_bytes),
        "" if enough else f"at least {gib(MEMORY_BYTES)}: Ray and two small workers",
    )
    if machine.shared_memory_bytes is not None:
        roomy = machine.shared_memory_bytes >= SHARED_MEMORY_BYTES
        yield Finding(
            "shared memory",
            "ok" if roomy else "note",
            f"{gib(machine.shared_memory_bytes)} free",
            "" if roomy else "in a container, start it with --shm-size=1g",
        )
    if machine.run_memory_bytes:
        yield Finding(
            "memory of runs",
            "note",
            f"{gib(machine.run_memory_bytes)} in /dev/shm/braid-*",
            "`braid clean RUN` frees what a run that is over left for its next start",
        )
    if machine.torch_problem is not None:
        yield Finding(
            "devices", "problem", f"torch does not import: {machine.torch_problem}", "reinstall it"
        )
    elif machine.devices:
        yield Finding("devices", "ok", "; ".join(machine.devices))
    else:
        yield Finding("devices", "ok", "no GPU: training runs on the CPU with gloo")


def _run_dir(machine: Machine) -> Finding:
    found = f"{machine.run_dir}, {gib(machine.run_dir_free_bytes)} free"
    if not machine.run_dir_writable:
        return Finding("run folder", "problem", f"{found}, not writable", "set run.dir elsewhere")
    if machine.run_dir_free_bytes < FREE_DISK_BYTES:
        return Finding(
            "run folder", "problem", found, f"free {gib(FREE_DISK_BYTES)} or set run.dir elsewhere"
        )
    return Finding("run folder", "ok", found)


def _ray_auth(machine: Machine) -> Finding:
    cluster = f", RAY_ADDRESS={machine.ray_address}" if machine.ray_address else ""
    if machine.ray_auth_mode not in (None, "token"):
        return Finding(
            "ray access",
            "problem",
            f"RAY_AUTH_MODE={machine.ray_auth_mode}: whoever reaches a port may run code{cluster}",
            "unset RAY_AUTH_MODE, or set it to token",
        )
    if machine.ray_token:
        return Finding("ray access", "ok", f"token at hand{cluster}")
    return Finding(
        "ray access",
        "note",
        f"no token yet; a local cluster makes one{cluster}",
        "to join a cluster, copy its token to ~/.ray/auth_token or set RAY_AUTH_TOKEN",
    )
