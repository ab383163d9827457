"""The guarantees of cluster/watchdog/silences.py."""

from cluster.watchdog.silences import TOLD_S, Silence, Silences


def test_a_silence_and_its_end_are_told_once() -> None:
    silences = Silences()
    told = [silences.add({"a": 0.1, "b": at}) for at in (0.2, 2.0, 2.6, 3.1, 4.0, 0.1, 0.2, 2.7)]
    assert told == [
        [],
        [],
        [Silence("b", 2.6, over=False)],
        [],
        [],
        [Silence("b", 4.0, over=True)],
        [],
        [Silence("b", 2.7, over=False)],
    ]


def test_the_observers_own_silence_is_not_told() -> None:
    silences = Silences()
    assert silences.add({"a": TOLD_S + 1, "b": TOLD_S + 1}) == []
    assert silences.add({"a": TOLD_S + 1}) == []
    assert silences.add({"a": 0.0, "b": 0.0}) == []
