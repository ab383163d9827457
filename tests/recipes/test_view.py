"""What people see and search for."""

import io

import pytest
from rich.console import Console

from recipes.view import PlainView, TerminalView, open_view
from recipes.wording import count, duration, step_line

RECORD = {
    "step": 10,
    "total_steps": 300,
    "loss": 4.23101,
    "grad_norm": 1.3499,
    "lr": 1e-3,
    "tokens_per_s": 2748.2,
    "mfu": 0.312,
    "memory_gib": 0.612,
    "step_s": 0.513,
    "eta_s": 130.0,
    "skipped": False,
}
LINE = (
    "step: 10/300  loss: 4.2310  grad_norm: 1.35  lr: 1.0e-03  tok/s: 2,748  mfu: 31.2%  "
    "mem: 0.61GiB  step_s: 0.51  eta: 2m10s"
)
FAILURE = {
    "code": 10,
    "cause": "worker died",
    "host": "node-a",
    "rank": 1,
    "phase": "training",
    "step": 7,
    "last_lines": ["[one]", "two"],
    "time": 0.0,
    "log": "runs/x/logs/worker-1.log",
}


def outcome(tmp_path, kind="finished"):
    return {
        "kind": kind,
        "step": 300,
        "checkpoint": "step-00000300",
        "run_dir": str(tmp_path / "runs" / "x"),
        "elapsed_s": 61.0,
    }


@pytest.fixture
def terminal():
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=160, highlight=False)
    return TerminalView(console), screen


def test_the_line_of_a_step():
    assert step_line(RECORD) == LINE
    assert step_line(RECORD | {"skipped": True}).endswith("skipped: not finite")


def test_a_step_by_rewards_shows_what_was_learned_and_who_waited() -> None:
    figures = {
        "reward/mean": 0.25,
        "accuracy": 0.5,
        "staleness/mean": 1.0,
        "timing_s/trainer_wait": 0.1,
        "timing_s/rollout_wait": 2.0,
    }
    shown = step_line(RECORD | figures)
    assert "  reward: 0.250  accuracy: 50.0%  stale: 1.00  " in shown
    assert "  waits: 0.10s train, 2.00s sample  " in shown


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (59.6, "1m00s"), (130, "2m10s"), (3780, "1h03m"), (187200, "2d04h"), (-1, "0s")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_counts():
    assert [count(n) for n in (950, 9_300_000, 1_040_000_000)] == ["950", "9.3M", "1.04B"]


def test_without_a_terminal_there_is_one_plain_line_per_event(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    view = PlainView()
    view.phase("placing", "rank 1, 3 s")
    view.note("a note")
    view.step(RECORD)
    view.finished(outcome(tmp_path))
    view.warning("full soon")
    view.failed(FAILURE)
    out, err = capsys.readouterr()
    assert out.splitlines()[:4] == [
        "phase: placing  rank 1, 3 s",
        "a note",
        LINE,
        "finished at step 300 in 1m01s",
    ]
    assert 'braid generate runs/x --prompt "def "' in out
    assert "tensorboard --logdir runs/x/tensorboard" in out
    assert err.splitlines()[0] == "warning: full soon"
    assert "worker died" in err
    assert "at rank 1, host node-a, phase training, step 7" in err
    assert "  [one]" in err
    assert "its log: runs/x/logs/worker-1.log" in err


def test_a_stopped_run_says_how_to_go_on(capsys, tmp_path):
    PlainView().finished(outcome(tmp_path, kind="stopped"))
    out = capsys.readouterr().out
    assert "stopped after saving at step 300" in out
    assert "the same command again" in out


def test_a_failure_without_a_process_names_none(capsys):
    PlainView().failed(FAILURE | {"rank": None, "host": None, "log": None, "last_lines": []})
    err = capsys.readouterr().err
    assert "at phase training, step 7" in err
    assert "rank" not in err


def test_a_terminal_gets_the_same_line_and_a_bar(terminal, tmp_path):
    view, screen = terminal
    view.phase("joining", "")
    view.step(RECORD)
    view.phase("training", "")
    view.finished(outcome(tmp_path))
    shown = screen.getvalue()
    assert LINE in shown
    assert "finished at step 300" in shown
    assert "braid generate" in shown


def test_a_terminal_shows_a_failure_on_standard_error(terminal, capsys):
    view, _ = terminal
    view.phase("joining", "")
    view.failed(FAILURE)
    err = capsys.readouterr().err
    assert "failed with exit code 10" in err
    assert "[one]" in err


def test_a_pipe_gets_plain_lines():
    with open_view() as view:
        assert isinstance(view, PlainView)


def test_a_terminal_is_itself_again_after_an_unexpected_end(terminal):
    view, screen = terminal
    view.phase("joining", "")
    assert "\x1b[?25l" in screen.getvalue()
    view.close()
    assert screen.getvalue().rindex("\x1b[?25h") > screen.getvalue().rindex("\x1b[?25l")
