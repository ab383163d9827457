"""Bad settings are refused with values that fit, and the ratio falls as published."""

import pytest

from comms.compression.config import (
    CompressionConfig,
    StepChoice,
    begins_dense,
    check_optimizer,
    ratio_at,
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


def test_momentum_needs_sgd():
    config = CompressionConfig(method="dgc", momentum=0.9)
    check_optimizer(config, "sgd")
    check_optimizer(CompressionConfig(method="econtrol"), "adamw")
    with pytest.raises(ValueError, match=r"optimizer=adamw.*econtrol"):
        check_optimizer(config, "adamw")


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
    assert "quantized" in CompressionConfig().fitting_methods()


def test_error_feedback_begins_dense():
    config = CompressionConfig(method="powersgd", dense_steps=2)
    assert [begins_dense(step, config) for step in range(4)] == [True, True, False, False]
    assert not begins_dense(0, CompressionConfig(method="quantized"))
    assert not begins_dense(0, CompressionConfig(method="dgc", momentum=0.9))
