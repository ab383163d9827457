"""What a driver tells those who watch from elsewhere."""

from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from cluster.ray_metrics import SINCE_STEP
from cluster.telling import Telling, new_events
from trainer.run_folder import RunFolder, append_event

ALERTS = Path(__file__).resolve().parents[2] / "docs/prometheus-alerts.yaml"


class Clock:
    """Moved by hand."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def texts(folder: RunFolder) -> list[str]:
    found = []
    for path in sorted(folder.tensorboard.glob("*.incidents")):
        for event in EventFileLoader(str(path)).Load():
            found += [value.tensor.string_val[0].decode() for value in event.summary.value]
    return found


def test_new_incidents_are_told_once_and_those_of_an_earlier_driver_not(tmp_path: Path) -> None:
    folder, clock = RunFolder(tmp_path), Clock()
    append_event(folder.events, now_s=1.0, kind="worker_lost", step=1, rank=0, host="a")
    telling = Telling(folder, run="r", project="p", clock=clock)
    append_event(folder.events, now_s=2.0, kind="ranks_started", step=1)
    append_event(folder.events, now_s=3.0, kind="worker_hung", step=2, rank=1, host="b")
    telling.poll()
    assert texts(folder) == []
    clock.now_s += 2
    telling.poll()
    assert [text.partition(",")[0] for text in texts(folder)] == ["**worker_hung** at step 2"]
    append_event(folder.events, now_s=4.0, kind="recovered", step=2)
    telling.close()
    assert [text[:13] for text in texts(folder)] == ["**worker_hung", "**recovered**"]


def test_seconds_since_the_last_step_go_on_by_the_monotonic_clock(tmp_path: Path) -> None:
    clock = Clock()
    telling = Telling(RunFolder(tmp_path), run="r", project="p", clock=clock)
    clock.now_s += 30
    assert telling.since_step.update() == 30
    telling.step()
    clock.now_s += 2
    assert telling.since_step.update() == 2
    telling.close()


def test_an_alert_uses_the_gauge() -> None:
    assert f"ray_{SINCE_STEP}" in ALERTS.read_text()


@pytest.mark.parametrize("half", ["", '{"kind": "recov'])
def test_a_line_that_is_not_whole_is_read_later(tmp_path: Path, half: str) -> None:
    log = tmp_path / "events.jsonl"
    assert new_events(log, 0) == ([], 0)
    log.write_text('{"kind": "started"}\n' + half)
    assert new_events(log, 0) == ([{"kind": "started"}], 20)
    log.write_text('{"kind": "started"}\n{"kind": "recovered"}\n')
    assert new_events(log, 20) == ([{"kind": "recovered"}], 42)


def test_a_line_that_others_wrote_over_is_left_out(tmp_path: Path) -> None:
    log = tmp_path / "events.jsonl"
    log.write_text('{"kind": "sta{"kind": "started"}\n{"kind": "recovered"}\n')
    assert new_events(log, 0) == ([{"kind": "recovered"}], len(log.read_bytes()))
