"""The guarantees of cluster/recovery/cordon.py."""

from cluster.recovery.cordon import Cordon


def test_a_host_that_was_lost_too_often_stays_out() -> None:
    cordon = Cordon(after=2, window_s=100.0)
    assert not cordon.lost("10.0.0.1", 0.0)
    assert "10.0.0.1" not in cordon
    assert cordon.lost("10.0.0.1", 99.0)
    assert not cordon.lost("10.0.0.1", 500.0)
    assert "10.0.0.1" in cordon


def test_losses_far_apart_or_of_others_do_not_add_up() -> None:
    cordon = Cordon(after=2, window_s=100.0)
    assert not cordon.lost("10.0.0.1", 0.0)
    assert not cordon.lost("10.0.0.2", 1.0)
    assert not cordon.lost("10.0.0.1", 101.0)
    assert cordon.lost("10.0.0.1", 102.0)


def test_zero_never_cordons() -> None:
    cordon = Cordon(after=0, window_s=100.0)
    assert not any(cordon.lost("10.0.0.1", float(at)) for at in range(9))
