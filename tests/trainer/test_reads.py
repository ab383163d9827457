"""A key that nothing reads is found out."""

import pytest

from trainer.config import JobConfig
from trainer.errors import RecipeError
from trainer.model.config import ModelConfig, MoeConfig
from trainer.reads import ReadLog, leaves_of, require_read


def test_reads_are_recorded_by_dotted_name_through_sections_and_properties():
    log = ReadLog()
    job = log.watch(JobConfig(model=ModelConfig(moe=MoeConfig(top_k=1))))
    assert isinstance(job, JobConfig)
    assert log.read == frozenset()
    assert job.data.seq_len == 512
    assert job.model.moe is not None
    assert job.model.moe.top_k == 1
    assert job.model.resolved_head_dim == 64
    assert log.read == {
        "data.seq_len",
        "model.moe.top_k",
        "model.head_dim",
        "model.hidden_size",
        "model.num_heads",
    }


def test_a_set_key_that_nothing_read_is_named_with_its_place():
    log = ReadLog()
    assert log.watch(JobConfig()).train.steps == 100
    require_read(log, {"train.steps": "run.yaml:3"})
    with pytest.raises(RecipeError, match=r"run\.yaml:7: sched\.decay_fraction has no effect"):
        require_read(log, {"train.steps": "run.yaml:3", "sched.decay_fraction": "run.yaml:7"})


def test_leaves_are_all_fields():
    names = dict(leaves_of(JobConfig()))
    assert names["train.steps"] == 100
    assert "model.moe" in names
