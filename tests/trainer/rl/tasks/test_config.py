"""Tasks that cannot be are refused."""

import pytest

from trainer.rl.tasks.config import TaskConfig


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"digits": 0}, r"rl\.task\.digits=0 must be at least 1"),
        ({"max_turns": 0}, r"rl\.task\.max_turns=0 must be at least 1"),
        ({"length": 1}, r"rl\.task\.length=1 must be at least 2"),
        ({"kind": "countdown", "length": 7}, "at most 6 numbers"),
        ({"operations": "+/"}, r"must be some of '\+-\*'"),
        ({"operations": ""}, r"must be some of '\+-\*'"),
        ({"format_credit": 1.5}, r"must be in \[0, 1\]"),
        ({"kind": "own"}, "need each other"),
        ({"factory": "mine:Task"}, "need each other"),
        ({"environment": "mine.Environment"}, "must be module:function"),
        ({"kind": "jsonl"}, r"needs rl\.task\.path"),
    ],
)
def test_impossible_tasks_are_refused(wrong, says):
    with pytest.raises(ValueError, match=says):
        TaskConfig(**wrong)
