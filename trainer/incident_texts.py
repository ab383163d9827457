"""What happened to a run, as TensorBoard text beside its curves. Needs neither torch nor ray.

For a driver: ranks that are gone cannot tell of their end.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.summary.writer.event_file_writer import EventFileWriter

TAG = "incidents"


class IncidentTexts:
    """An event file of its own in the folder of the curves."""

    def __init__(self, directory: Path) -> None:
        """Raises OSError where the folder cannot be written."""
        self._writer = EventFileWriter(str(directory), flush_secs=10, filename_suffix=".incidents")

    def write(self, event: Mapping[str, Any]) -> None:
        """One line of events.jsonl. It is on disk when this returns."""
        metadata = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))
        text = TensorProto(
            dtype="DT_STRING",
            string_val=[told(event).encode()],
            tensor_shape=TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)]),
        )
        value = Summary.Value(tag=f"{TAG}/text_summary", metadata=metadata, tensor=text)
        self._writer.add_event(
            Event(wall_time=event["time"], step=int(event["step"]), summary=Summary(value=[value]))
        )
        self._writer.flush()

    def close(self) -> None:
        """End the writer's thread."""
        self._writer.close()


def told(event: Mapping[str, Any]) -> str:
    """An event as a paragraph of markdown: what, who, why, and what it cost."""
    parts = [f"**{event['kind']}** at step {event['step']}"]
    if event.get("rank") is not None:
        parts.append(f"rank {event['rank']} on {event.get('host')}")
    elif event.get("host") is not None:
        parts.append(str(event["host"]))
    if event.get("worker") is not None:
        parts.append(str(event["worker"]))
    if event.get("phase"):
        parts.append(f"in {event['phase']}")
    lines = [", ".join(parts)]
    for name, unit in (("detected_s", "s"), ("resumed_s", "s"), ("lost_steps", "steps")):
        if event.get(name) is not None:
            lines.append(f"{name.partition('_')[0]}: {event[name]:.3g} {unit}")
    if event.get("cause"):
        lines.append(str(event["cause"]))
    lines += [f"- {sentence}" for sentence in event.get("evidence", ())]
    return "\n\n".join(lines)
