"""Small real work for ranks: what a training process may do, good and bad."""

import os
import signal
import socket
import time

from cluster.rank import RankControl, RankSpec
from cluster.reading import Outcome
from trainer.errors import DataError

STEPS = 5


def _enter_training(control: RankControl) -> None:
    for phase in ("joining", "building", "first_step"):
        control.status.enter(phase)
    control.status.enter("training", 1)


def _record(step: int, total: int) -> dict[str, float]:
    return {
        "step": step,
        "step_s": 0.01,
        "loss": 1.0 / step,
        "grad_norm": 1.0,
        "total_steps": total,
    }


def steps(spec: RankSpec, control: RankControl) -> Outcome:
    """Five steps, reported by rank 0."""
    _enter_training(control)
    for step in range(1, STEPS + 1):
        time.sleep(0.01)
        control.status.enter("training", step)
        if spec.environment.rank == 0:
            control.report(_record(step, STEPS))
    os.write(1, f"rank {spec.environment.rank} wrote to its own log\n".encode())
    return Outcome(kind="finished", step=STEPS, checkpoint="step-00000005")


def until_stopped(spec: RankSpec, control: RankControl) -> Outcome:
    """Steps until asked to stop."""
    _enter_training(control)
    step = 0
    while not control.should_stop():
        step += 1
        control.status.enter("training", step)
        if spec.environment.rank == 0:
            control.report(_record(step, 10**6))
        time.sleep(0.05)
    return Outcome(kind="stopped", step=step, checkpoint=f"step-{step:08d}")


def deaf(spec: RankSpec, control: RankControl) -> Outcome:
    """Trains and never looks whether it should stop."""
    _enter_training(control)
    while True:
        time.sleep(0.1)


def bad_data(spec: RankSpec, control: RankControl) -> Outcome:
    """Rank 1 cannot read its data; rank 0 waits for it."""
    _enter_training(control)
    if spec.environment.rank == 1:
        raise DataError("data/broken.jsonl:7 is not JSON")
    return until_stopped(spec, control)


def killed(spec: RankSpec, control: RankControl) -> Outcome:
    """Rank 1 is killed while rank 0 holds a connection to it, and fails by its loss."""
    _enter_training(control)
    address = (spec.environment.master_address, spec.environment.master_port)
    if spec.environment.rank == 0:
        with socket.create_server(address) as server, server.accept()[0] as peer:
            peer.recv(1)
        raise RuntimeError("Connection closed by peer [127.0.0.1]:1234")
    deadline = time.monotonic() + 50
    while True:
        try:
            with socket.create_connection(address):
                os.write(2, b"last words of rank 1\n")
                os.kill(os.getpid(), signal.SIGKILL)
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def stuck_joining(spec: RankSpec, control: RankControl) -> Outcome:
    """Rank 1 never gets past the meeting; rank 0 waits further on."""
    control.status.enter("joining" if spec.environment.rank == 1 else "building")
    while True:
        time.sleep(0.1)


def environment(spec: RankSpec, control: RankControl) -> Outcome:
    """Writes what it was given to its log."""
    _enter_training(control)
    names = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "RAY_AUTH_MODE")
    for name in names:
        os.write(1, f"{name}={os.environ.get(name)}\n".encode())
    os.write(1, f"explicit={sorted(spec.explicit)} project={spec.project}\n".encode())
    return Outcome(kind="finished", step=0, checkpoint=None)
