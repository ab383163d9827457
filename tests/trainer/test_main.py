"""A process that cannot meet the others says where and what to do."""

import socket

import pytest

from comms.config import RankEnvironment
from trainer.errors import ExitCode, InfrastructureError
from trainer.main import meet


def test_a_busy_port_is_named_with_the_remedy():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(
            InfrastructureError, match=rf"127\.0\.0\.1:{port}.*--master-port"
        ) as busy:
            meet(RankEnvironment.on_this_machine(0, 1, port))
    assert busy.value.exit_code is ExitCode.INFRASTRUCTURE
