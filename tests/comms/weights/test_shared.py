"""The guarantees of comms/weights/shared.py, with a writer in another process."""

import multiprocessing
import os
from itertools import count
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest
import torch
from torch import Tensor

from comms.weights.blocks import Block
from comms.weights.plan import Part
from comms.weights.shared import SharedWeights

SHAPES = {"up": (64, 33), "norm": (7,), "scale": ()}


def parts(dtype: str = "bfloat16") -> dict[str, Part]:
    return {
        name: Part(shape=shape, dtype=dtype, blocks=(Block((0,) * len(shape), shape),))
        for name, shape in SHAPES.items()
    }


def halves() -> list[dict[str, Part]]:
    """`up` by columns over two writers; the rest is the first's."""
    first, second = parts(), {}
    first["up"] = Part(shape=(64, 33), dtype="bfloat16", blocks=(Block((0, 0), (64, 20)),))
    second["up"] = Part(shape=(64, 33), dtype="bfloat16", blocks=(Block((0, 20), (64, 13)),))
    return [first, second]


def weights(version: int) -> dict[str, list[Tensor]]:
    """fp32 values that tell their version."""
    return {
        name: [torch.full(shape, float(version % 251)) + (0 if name == "scale" else 1)]
        for name, shape in SHAPES.items()
    }


def write_on(path: Path, enough: Event) -> None:
    torch.set_num_threads(1)
    shared = SharedWeights.attach(path, writers=[parts()])
    for version in count():
        shared.write(version, weights(version), writer=0)
        if enough.wait(0.0005):
            return


def write_and_die(path: Path) -> None:
    shared = SharedWeights.attach(path, writers=[parts()])
    good = weights(1)

    class Deadly(dict):
        def __getitem__(self, name: str) -> list[Tensor]:
            if name == "up":
                os._exit(0)
            return good[name]

    shared.write(1, Deadly(), writer=0)


def in_another_process(body, *arguments) -> multiprocessing.Process:
    process = multiprocessing.get_context("forkserver").Process(target=body, args=arguments)
    process.start()
    return process


def test_a_reader_gets_all_of_a_version_or_nothing(tmp_path):
    path = tmp_path / "weights"
    shared = SharedWeights.create(path, writers=[parts()])
    assert shared.read() is None
    enough = multiprocessing.get_context("forkserver").Event()
    writer = in_another_process(write_on, path, enough)
    last, seen = -1, 0
    while seen < 40:
        try:
            found = shared.read(after=last)
        except RuntimeError:
            continue
        if found is not None:
            version, tensors = found
            assert version > last
            for name, (given,) in weights(version).items():
                assert torch.equal(tensors[name], given.bfloat16()), (version, name)
            last, seen = version, seen + 1
    enough.set()
    writer.join()


def test_a_version_is_read_once_all_writers_have_written(tmp_path):
    writers = halves()
    shared = SharedWeights.create(tmp_path / "weights", writers=writers)
    given = weights(5)
    columns = given["up"][0]
    shared.write(5, {**given, "up": [columns[:, :20]]}, writer=0)
    assert shared.newest() is None
    shared.write(5, {"up": [columns[:, 20:]]}, writer=1)
    reader = SharedWeights.attach(tmp_path / "weights", writers=writers)
    version, tensors = reader.read()
    assert version == 5
    assert torch.equal(tensors["up"], columns.bfloat16())
    assert reader.read(after=5) is None


def test_a_version_whose_writer_died_is_not_read(tmp_path):
    path = tmp_path / "weights"
    shared = SharedWeights.create(path, writers=[parts()])
    shared.write(0, weights(0), writer=0)
    in_another_process(write_and_die, path).join()
    assert shared.newest() == 0
    version, tensors = shared.read()
    assert version == 0
    assert torch.equal(tensors["norm"], weights(0)["norm"][0].bfloat16())


def test_damage_is_found(tmp_path):
    path = tmp_path / "weights"
    shared = SharedWeights.create(path, writers=[parts()])
    shared.write(0, weights(3), writer=0)
    data = torch.from_file(str(path), shared=True, size=path.stat().st_size, dtype=torch.uint8)
    data[200] ^= 1
    with pytest.raises(RuntimeError, match="changed 4 times"):
        shared.read()


def test_other_weights_are_refused(tmp_path):
    path = tmp_path / "weights"
    SharedWeights.create(path, writers=[parts()])
    with pytest.raises(ValueError, match="holds other weights than the 3 tensors of 1 writers"):
        SharedWeights.attach(path, writers=[parts("float16")])
    with pytest.raises(ValueError, match="holds other weights"):
        SharedWeights.attach(path, writers=[parts("float32")])
    with pytest.raises(ValueError, match="weight norm has 7 elements and writers give 14"):
        SharedWeights.create(path, writers=[parts(), parts()])
    with pytest.raises(ValueError, match="writers share one model"):
        SharedWeights.create(path, writers=[parts(), parts("float32")])
