"""What Ray says of a process that ended, told plainly."""

from cluster.calls import end_of_process


def test_the_end_of_a_process_is_told_without_identifiers() -> None:
    message = (
        "The actor died.\n\tactor_id: 1234\n\tpid: 99\n"
        "Worker exit type: USER_ERROR "
        "Worker exit detail: exit code 5. Some common causes include: (1)"
    )
    assert end_of_process(message) == "exit code 5."
