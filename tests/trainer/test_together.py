"""Ranks succeed together or fail together."""

from tests.ranks import run_on_ranks
from trainer.errors import ResourceError
from trainer.together import least, on_all_ranks


def _work(rank):
    def refuse_on_one():
        if rank == 1:
            raise OSError("no room here")
        return rank

    try:
        on_all_ranks("make room", refuse_on_one)
    except ResourceError as error:
        return str(error), on_all_ranks("go on", lambda: 7), least(a=rank, b=-rank)
    return None


def test_what_one_rank_lacks_all_ranks_hear():
    wanted = ("ranks could not make room: rank 1: no room here", 7, {"a": 0, "b": -1})
    assert run_on_ranks(2, _work) == [wanted, wanted]
