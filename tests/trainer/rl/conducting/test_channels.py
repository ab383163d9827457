"""The guarantees of trainer/rl/conducting/channels.py."""

from trainer.rl.conducting.channels import Channels, trainer_names


def opened(names=("w0",), now_s=0.0):
    channels = Channels(("h", 1))
    channels.ready(now_s)
    place = channels.open(2, names, now_s)
    assert place is not None
    return channels, place


def test_one_opening_is_under_way_at_a_time_and_changes_are_taken_up_once():
    channels, place = opened()
    channels.joined(1.0, all_up=False)
    channels.joined(1.1, all_up=True)
    assert channels.open(2, ("w0", "w1", "w2"), 9.0) is None
    channels.published(place.prefix)
    following = channels.open(2, ("w0", "w1", "w2"), 9.0)
    assert following is not None
    assert following.names == (*trainer_names(2), "w0", "w1", "w2")
    channels.published(following.prefix)
    assert channels.open(2, ("w0", "w1", "w2"), 99.0) is None, "nothing has changed"


def test_an_opening_that_misses_a_member_is_not_waited_for():
    channels, place = opened(names=("w0", "w1"))
    channels.left("w1", 1.0)
    following = channels.open(2, ("w0",), 1.0)
    assert following is not None
    channels.failed(place.prefix, 2.0)
    channels.joined(2.0, all_up=True)
    assert channels.open(2, ("w0", "w2"), 2.0) is None, "the second opening is under way"


def test_workers_that_start_together_are_in_one_channel():
    channels, place = opened()
    channels.published(place.prefix)
    channels.joined(1.0, all_up=False)
    assert channels.open(2, ("w0", "w1"), 1.0) is None
    assert channels.open(2, ("w0", "w1", "w2"), 1.6) is not None


def test_no_prefix_is_used_twice():
    channels, place = opened()
    channels.failed(place.prefix, 0.0)
    again = channels.open(2, ("w0",), 0.0)
    later = Channels(("h", 1), opened=channels.opened)
    later.ready(0.0)
    after = later.open(2, ("w0",), 0.0)
    assert len({p.prefix for p in (place, again, after) if p is not None}) == 3


def test_after_failures_in_a_row_openings_wait_longer_and_longer_up_to_a_minute():
    channels, place = opened()
    waits, now_s = [], 0.0
    for _ in range(9):
        channels.failed(place.prefix, now_s)
        channels.joined(now_s, all_up=True)
        begun_s, place = now_s, None
        while place is None:
            place = channels.open(2, ("w0",), now_s)
            now_s += 0.5
        waits.append(now_s - 0.5 - begun_s)
    assert waits == [0.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0]
    channels.published(place.prefix)
    channels.failed(place.prefix, now_s)
    assert channels.open(2, ("w0",), now_s) is not None


def test_what_is_said_of_an_earlier_channel_changes_nothing():
    channels, place = opened()
    channels.failed(place.prefix, 0.0)
    following = channels.open(2, ("w0",), 0.0)
    assert following is not None
    channels.failed(place.prefix, 0.0)
    channels.published(place.prefix)
    channels.joined(0.0, all_up=True)
    assert channels.open(2, ("w0",), 50.0) is None, "still under way"
    assert channels.is_present("")
    assert channels.is_present(following.prefix)
    assert not channels.is_present(place.prefix)


def test_only_who_was_a_member_is_missed_and_nothing_is_opened_without_trainers_or_workers():
    channels, place = opened()
    channels.published(place.prefix)
    channels.left("w7", 1.0)
    assert channels.open(2, ("w0",), 1.0) is None
    channels.left("w0", 1.0)
    assert channels.open(2, (), 1.0) is None
    channels.lost()
    assert channels.open(2, ("w0",), 100.0) is None
    assert channels.members == ()


def test_a_doubted_channel_is_opened_anew_unless_others_notice_first():
    channels, place = opened()
    channels.published(place.prefix)
    channels.doubted(0.0)
    assert channels.open(2, ("w0",), 4.0) is None
    assert channels.open(2, ("w0",), 5.0) is not None


def test_where_the_store_is_lost_the_channel_is_opened_anew_at_the_next_one():
    for through in (True, False):
        channels, place = opened()
        if through:
            channels.published(place.prefix)
        channels.moved(("h", 2), 1.0)
        following = channels.open(2, ("w0",), 1.0)
        assert following is not None
        assert (following.host, following.port) == ("h", 2)
        assert following.prefix != place.prefix
    channels.lost()
    channels.moved(("h", 3), 1.0)
    assert channels.open(2, ("w0",), 100.0) is None, "nobody trains"
