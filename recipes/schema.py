"""The whole recipe as one type, and its JSON Schema. Imports neither torch nor ray.

The sections are plain dataclasses beside the code that reads them; here pydantic checks them
strictly: no unknown keys, no conversions, no infinities.
"""

from dataclasses import dataclass, field
from typing import Any

from pydantic import ConfigDict, TypeAdapter, with_config

from cluster.config import ClusterConfig
from cluster.recovery.config import RecoveryConfig
from cluster.watchdog.config import WatchdogConfig
from recipes.keys import documentation, nested_dataclasses
from trainer.config import JobConfig

REFERENCE_PATTERN = r"^\$\{[a-z0-9_.]+\}$"


@with_config(ConfigDict(extra="forbid", strict=True, allow_inf_nan=False))
@dataclass(frozen=True, kw_only=True)
class Recipe(JobConfig):
    """A run written down: what each training process does, and on which processes."""

    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    """Processes and hosts."""

    watchdog: WatchdogConfig = field(default_factory=WatchdogConfig)
    """How faults are noticed."""

    recovery: RecoveryConfig = field(default_factory=RecoveryConfig)
    """What is done about them."""

    @property
    def job(self) -> JobConfig:
        """The part that training processes are told."""
        return JobConfig(
            run=self.run,
            model=self.model,
            data=self.data,
            train=self.train,
            optim=self.optim,
            sched=self.sched,
            parallel=self.parallel,
            checkpoint=self.checkpoint,
            offload=self.offload,
            keep=self.keep,
            numeric=self.numeric,
            comms=self.comms,
        )


ADAPTER = TypeAdapter(Recipe)
"""Validates JSON text: in strict mode only there may a list stand for a tuple."""


def json_schema() -> dict[str, Any]:
    """JSON Schema of a recipe file, for editors. Every description is the field's docstring."""
    schema = ADAPTER.json_schema()
    for cls in nested_dataclasses(Recipe):
        where = schema if cls is Recipe else schema["$defs"][cls.__name__]
        texts = documentation(cls)
        for name, entry in where["properties"].items():
            if name in texts:
                entry["description"] = texts[name]
            where["properties"][name] = _or_reference(entry)
    schema["properties"] = {
        "base": {
            "type": "string",
            "description": "Recipe to start from: a bundled name, or a path relative to this file.",
        },
        "defaults": {
            "description": "Values in force where nothing else sets them; written by Braid into "
            "resolved recipes.",
            "type": "object",
        },
        **schema["properties"],
    }
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _or_reference(entry: dict[str, Any]) -> dict[str, Any]:
    """Also allow `${section.key}` where the type would not."""
    if "$ref" in entry or entry.get("type") == "string":
        return entry
    described = ("title", "description", "default")
    kept = {name: entry[name] for name in described if name in entry}
    kind = {name: value for name, value in entry.items() if name not in described}
    choices = kind["anyOf"] if set(kind) == {"anyOf"} else [kind]
    return {**kept, "anyOf": [*choices, {"type": "string", "pattern": REFERENCE_PATTERN}]}
