"""Messages arrive once and in order."""

from cluster.post import Post


def sent(*messages: str) -> Post[str, str]:
    post: Post[str, str] = Post()
    post.outbox.put(*messages)
    return post


def test_every_message_arrives_once_and_in_order_however_often_a_call_is_made() -> None:
    post: Post[str, str] = Post()
    post.deliver(0, 0, ("a", "b"))
    post.deliver(0, 0, ("a", "b"))
    post.deliver(0, 1, ("b", "c", "d"))
    assert post.inbox.take_all() == ["a", "b", "c", "d"]


def test_what_is_collected_is_kept_until_it_has_arrived() -> None:
    post = sent("a", "b")
    assert post.collect(0, 0, 0.0) == ("a", "b")
    post.outbox.put("c")
    assert post.collect(0, 0, 0.0) == ("a", "b", "c")
    assert post.collect(0, 2, 0.0) == ("c",)
    assert post.collect(0, 3, 0.0) == ()
    assert post.collect(0, 1, 0.0) == ()


def test_a_call_of_an_earlier_piece_of_work_changes_nothing() -> None:
    post: Post[str, str] = Post(2)
    post.outbox.put("new")
    post.deliver(1, 0, ("old",))
    post.hang_up(1)
    assert post.collect(1, 0, 0.0) == ()
    post.deliver(2, 0, ("new",))
    assert post.inbox.take_all() == ["new"]
    assert post.collect(2, 0, 0.0) == ("new",)
