"""Messages keep their order, and nobody waits for a mailbox that is closed."""

from threading import Thread

import pytest

from trainer.rl.mailbox import Mailbox, MailboxClosedError


def test_messages_come_out_in_order_from_another_thread():
    box: Mailbox[int] = Mailbox()
    writer = Thread(target=lambda: [box.put(number) for number in range(100)])
    writer.start()
    assert [box.take(10.0) for _ in range(100)] == list(range(100))
    writer.join()
    assert box.take(0.0) is None


def test_what_is_in_a_closed_mailbox_is_still_taken():
    box: Mailbox[int] = Mailbox()
    box.put(1, 2)
    box.close()
    assert box.take_all() == [1, 2]
    with pytest.raises(MailboxClosedError):
        box.take()


def test_closing_wakes_who_waits():
    box: Mailbox[int] = Mailbox()
    found: list[object] = []

    def wait() -> None:
        with pytest.raises(MailboxClosedError):
            box.take()
        found.append("woken")

    waiter = Thread(target=wait)
    waiter.start()
    box.close()
    waiter.join(10.0)
    assert found == ["woken"]
