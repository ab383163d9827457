"""Incidents are read back by TensorBoard itself."""

import subprocess
import sys
from pathlib import Path

from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from trainer.incident_texts import IncidentTexts, told

LOST = {
    "time": 1000.5,
    "kind": "worker_hung",
    "step": 7,
    "host": "b",
    "rank": 1,
    "phase": "backward",
    "cause": "it made no progress",
    "detected_s": 2.25,
    "evidence": ["rank 0 waits for it"],
}


def test_an_event_is_a_text_of_its_step(tmp_path: Path) -> None:
    texts = IncidentTexts(tmp_path)
    texts.write(LOST)
    (path,) = tmp_path.iterdir()
    read = [event for event in EventFileLoader(str(path)).Load() if event.summary.value]
    texts.close()
    assert [(event.step, event.wall_time) for event in read] == [(7, 1000.5)]
    value = read[0].summary.value[0]
    assert value.metadata.plugin_data.plugin_name == "text"
    assert value.tensor.string_val[0].decode() == told(LOST)


def test_it_says_what_who_why_and_what_it_cost() -> None:
    assert told(LOST).split("\n\n") == [
        "**worker_hung** at step 7, rank 1 on b, in backward",
        "detected: 2.25 s",
        "it made no progress",
        "- rank 0 waits for it",
    ]
    recovered = {"kind": "recovered", "step": 9, "host": None, "resumed_s": 3.0, "lost_steps": 1}
    assert told(recovered).split("\n\n")[1:] == ["resumed: 3 s", "lost: 1 steps"]


def test_a_driver_can_write_them_without_torch() -> None:
    code = "import sys, trainer.incident_texts; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
