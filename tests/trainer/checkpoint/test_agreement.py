"""Errors reach every rank; ranks that went astray do not wait for each other."""

import json
import os
from pathlib import Path

import pytest
import torch.distributed as dist

from tests.ranks import run_on_ranks
from trainer.checkpoint.agreement import RanksFailed, agree, agree_all, exchange


def _fail() -> None:
    raise OSError(28, os.strerror(28))


def _check(rank: int, directory: Path) -> None:
    group = dist.group.WORLD
    assert exchange(group, {"rank": rank, "text": "ä" * rank}) == [
        {"rank": 0, "text": ""},
        {"rank": 1, "text": "ä"},
    ]
    assert agree(group, "work", lambda: rank) == rank
    assert agree_all(group, "work", lambda: rank) == [0, 1]
    with pytest.raises(RanksFailed, match=r"^rank 1: .*No space left.*keep_last"):
        agree(group, "work", _fail if rank == 1 else lambda: None)
    with pytest.raises(RanksFailed, match="rank 0: saving 3; rank 1: loading"):
        agree(group, "loading" if rank else "saving 3", lambda: None)
    (directory / f"{rank}.json").write_text(json.dumps(agree_all(group, "again", lambda: rank)))


def test_two_ranks_learn_of_each_others_errors(tmp_path: Path) -> None:
    run_on_ranks(2, _check, tmp_path)
    assert [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)] == [[0, 1]] * 2


def test_without_a_group_a_process_agrees_with_itself() -> None:
    assert agree_all(None, "work", lambda: 5) == [5]
    with pytest.raises(RanksFailed, match="rank 0"):
        agree(None, "work", _fail)
