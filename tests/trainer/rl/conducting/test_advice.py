"""The guarantees of trainer/rl/conducting/advice.py."""

from trainer.rl.conducting.advice import Advice


def window(advice, trained_s, sampled_s, trainers=4, workers=4):
    found = []
    for _ in range(10):
        advice.trained(trained_s)
        advice.sampled(sampled_s * workers)
        found.append(advice.due(trainers=trainers, workers=workers))
    assert found[:-1] == [None] * 9, "from a window of steps"
    return found[-1]


def test_advice_comes_once_per_window_and_the_same_only_once():
    advice = Advice()
    given = window(advice, 1.0, 3.0)
    assert given is not None
    assert (given["trainers"], given["workers"]) == (2, 6)
    assert "instead of 3 s" in given["cause"]
    assert window(advice, 1.0, 3.0) is None
    other = window(advice, 3.0, 1.0)
    assert other is not None
    assert (other["trainers"], other["workers"]) == (6, 2)


def test_a_good_split_and_unmeasured_roles_need_no_advice():
    advice = Advice()
    assert window(advice, 1.0, 1.0) is None
    assert window(advice, 1.0, 0.0) is None
    assert window(advice, 1.0, 3.0, workers=0) is None
