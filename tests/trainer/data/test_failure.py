import pytest

from trainer.data.failure import Failure, forget_failure, found_failure
from trainer.errors import DataError, InfrastructureError, NumericError, ResourceError


@pytest.mark.parametrize("kind", [DataError, ResourceError, InfrastructureError])
def test_an_error_is_the_same_after_the_way_through_a_folder(tmp_path, kind):
    path = tmp_path / "failure.json"
    assert found_failure(path) is None
    Failure.of(kind("line 3 is bad")).leave(path)
    found = found_failure(path)
    assert type(found.error()) is kind
    assert str(found.error()) == "line 3 is bad"
    forget_failure(path)
    assert found_failure(path) is None
    forget_failure(path)


def test_an_error_of_another_part_is_one_of_infrastructure():
    assert type(Failure.of(NumericError("x")).error()) is InfrastructureError
