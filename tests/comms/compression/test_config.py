"""Bad settings are refused with values that fit, and the ratio falls as published."""

import pytest

from comms.compression.config import (
    CompressionConfig,
    ReplicaConfig,
    StepChoice,
    begins_dense,
    compression_of,
    ratio_at,
    used_keys,
)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"ratio": 0.0}, ["ratio=0.0", "(0, 1]"]),
        ({"ratio": 1.5}, ["ratio=1.5", "(0, 1]"]),
        ({"eta": 0.0}, ["eta=0.0", "(0, 1]"]),
        ({"method": "topk"}, ["method=topk", "econtrol", "powersgd"]),
        ({"method": "ef", "contraction": "sign"}, ["contraction=sign", "top_k"]),
        ({"method": "dgc"}, ["method=dgc", "momentum=0.9", "econtrol"]),
        ({"method": "powersgd", "momentum": 0.9}, ["powersgd", "none", "dgc"]),
        ({"momentum": 1.0}, ["momentum=1.0", "0.9"]),
        ({"clip_norm": 0.0}, ["clip_norm=0.0"]),
        ({"rank": 0}, ["rank=0", "at least 1"]),
        ({"warmup_steps": -1}, ["warmup_steps=-1"]),
        ({"values": "int4"}, ["values=int4", "fp16"]),
        ({"block_format": "fp6"}, ["block_format=fp6", "fp4"]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_bad_settings_are_refused_with_values_that_fit(settings, words):
    with pytest.raises(ValueError, match="=") as caught:
        CompressionConfig(**settings)
    assert all(word in str(caught.value) for word in words), caught.value


def test_the_warm_up_is_the_published_one():
    config = CompressionConfig(method="dgc", momentum=0.9, ratio=0.001, warmup_steps=40)
    stages = [ratio_at(step, config) for step in (0, 10, 20, 30, 40, 1000)]
    assert stages == pytest.approx([0.25, 0.0625, 0.0156, 0.004, 0.001, 0.001], rel=0.03)
    assert ratio_at(9, config) == ratio_at(0, config)


def test_a_step_may_choose_within_its_family():
    config = CompressionConfig(method="dgc", momentum=0.9)
    assert config.with_choice(StepChoice(method="none")).method == "none"
    assert config.with_choice(StepChoice(method="dgc", ratio=0.1)).ratio == 0.1
    with pytest.raises(ValueError, match="none, fp16, bf16, dgc"):
        config.with_choice(StepChoice(method="quantized"))
    assert CompressionConfig().with_choice(StepChoice(method="quantized")).method == "quantized"


def test_error_feedback_begins_dense():
    config = CompressionConfig(method="powersgd", dense_steps=2)
    assert [begins_dense(step, config) for step in range(4)] == [True, True, False, False]
    assert not begins_dense(0, CompressionConfig(method="quantized"))
    assert not begins_dense(0, CompressionConfig(method="dgc", momentum=0.9))


CHOICES = {
    "none": StepChoice(method="none"),
    "dgc@0.001": StepChoice(method="dgc", ratio=0.001),
    "powersgd@rank4": StepChoice(method="powersgd", rank=4),
    "quantized@fp4": StepChoice(method="quantized", block_format="fp4"),
    "ef": StepChoice(method="ef"),
}


@pytest.mark.parametrize("text", list(CHOICES))
def test_a_choice_is_what_its_text_says(text):
    assert str(CHOICES[text]) == text
    assert StepChoice.parse(text) == CHOICES[text]


def test_other_text_is_refused():
    with pytest.raises(ValueError, match="'dgq@1' names no method; choose one of"):
        StepChoice.parse("dgq@1")


USED = [
    (ReplicaConfig(), set()),
    (ReplicaConfig(method="bf16"), {"dense_below", "clip_norm"}),
    (ReplicaConfig(method="quantized"), {"dense_below", "clip_norm", "block_format"}),
    (
        ReplicaConfig(method="powersgd"),
        {"dense_below", "clip_norm", "dense_steps", "rank", "values"},
    ),
    (
        ReplicaConfig(method="ef", contraction="rand_k", warmup_steps=9),
        {"dense_below", "clip_norm", "dense_steps", "contraction", "ratio", "values"}
        | {"warmup_steps", "warmup_stages"},
    ),
    (
        ReplicaConfig(method="econtrol", contraction="low_rank"),
        {"dense_below", "clip_norm", "dense_steps", "contraction", "eta", "rank", "values"},
    ),
    (
        ReplicaConfig(method="dgc"),
        {"dense_below", "clip_norm", "mask_momentum", "ratio", "warmup_steps", "sample_ratio"}
        | {"values"},
    ),
]


@pytest.mark.parametrize(("config", "keys"), USED, ids=lambda value: str(value)[:40])
def test_keys_that_have_no_effect_are_not_used(config, keys):
    assert set(used_keys(config)) == keys | {"method"}


def test_a_recipe_gives_dgc_the_optimizers_momentum_and_clipping_and_nobody_else():
    optimizer = {"momentum": 0.9, "nesterov": True, "max_grad_norm": 2.0, "seed": 7}
    dgc = compression_of(ReplicaConfig(method="dgc", ratio=0.01), **optimizer)
    assert (dgc.momentum, dgc.nesterov, dgc.clip_norm, dgc.ratio) == (0.9, True, 2.0, 0.01)
    own = compression_of(ReplicaConfig(method="dgc", clip_norm=5.0), **optimizer)
    assert own.clip_norm == 5.0
    other = compression_of(ReplicaConfig(method="econtrol"), **optimizer)
    assert (other.momentum, other.nesterov, other.clip_norm, other.seed) == (0.0, False, None, 7)
    with pytest.raises(ValueError, match=r"needs the optimizer's, such as momentum=0\.9"):
        compression_of(ReplicaConfig(method="dgc"), **{**optimizer, "momentum": 0.0})
