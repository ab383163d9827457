"""Every compressor contracts, and receivers see what its sender subtracts."""

import pytest
import torch
import torch.distributed as dist

from comms.compression.config import CompressionConfig
from comms.compression.contractions import contraction_of
from comms.compression.geometry import cut
from comms.compression.method import Scratch, Step
from comms.compression.state import Slot
from tests.ranks import run_on_ranks

NUMEL = 80 * 60
CASES = {
    "top_k": ({"contraction": "top_k", "ratio": 0.05}, 0.05),
    "rand_k": ({"contraction": "rand_k", "ratio": 0.2}, 0.1),
    "int8": ({"contraction": "quantized"}, 0.99),
    "fp4": ({"contraction": "quantized", "block_format": "fp4"}, 0.9),
    "low_rank": ({"contraction": "low_rank", "rank": 3}, 0.03),
    "top_k fp4": ({"contraction": "top_k", "ratio": 0.05, "values": "fp4"}, 0.045),
    "low_rank fp4": ({"contraction": "low_rank", "rank": 3, "values": "fp4"}, 0.03),
}


def _vectors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(NUMEL, generator=generator)
    return {"normal": normal, "heavy": normal**5, "constant": torch.ones(NUMEL)}


def _body(rank: int) -> dict[tuple[str, str], tuple[float, bool, bool]]:
    found = {}
    for name, (settings, _) in CASES.items():
        config = CompressionConfig(method="econtrol", dense_below=0, **settings)
        contraction, geometry = contraction_of(config), cut(NUMEL, [(80, 60)], config)
        for kind, x in _vectors().items():
            step = Step(geometry, dist.group.WORLD, config.ratio, 7, True, Scratch())
            code, update = contraction.encode(x.clone(), Slot(), step)
            left, received = x.clone(), torch.zeros(NUMEL)
            update.add_to(left, alpha=-1)
            contraction.decode(code, step).add_to(received)
            size = code.numel() == contraction.code_bytes(geometry, config.ratio)
            same = torch.allclose(received + left, x, rtol=1e-5, atol=1e-5)
            found[name, kind] = (float(left.square().sum() / x.square().sum()), same, size)
    return found


def test_every_compressor_contracts():
    found = run_on_ranks(1, _body)[0]
    for (name, kind), (left, same, size) in found.items():
        assert left <= 1 - CASES[name][1] + 1e-3, (name, kind, left)
        assert same, (name, kind)
        assert size, (name, kind)


@pytest.mark.parametrize("name", list(CASES))
def test_codes_are_smaller_than_gradients(name):
    config = CompressionConfig(method="econtrol", dense_below=0, **CASES[name][0])
    geometry = cut(NUMEL, [(80, 60)], config)
    assert contraction_of(config).code_bytes(geometry, config.ratio) < 4 * NUMEL / 3
