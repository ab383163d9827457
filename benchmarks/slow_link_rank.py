"""One rank of benchmarks/slow_link.py: a GPT of 24.5 M parameters that trains in several ways.

Started by it with the path of a JSON document; writes its figures as one JSON document.
"""

import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook
from torch.nn.functional import cross_entropy, scaled_dot_product_attention
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LambdaLR

from comms.compression.config import CompressionConfig
from comms.compression.ddp import DdpBuckets, ddp_hook
from comms.compression.exchange import Exchange
from comms.compression.sgd import CorrectedSGD
from comms.config import RankEnvironment
from comms.groups import join, leave

# B sequences of T tokens, D width, H heads, V vocabulary.

HEADS = 8


class Block(nn.Module):
    """Attention and a feed-forward network."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.inner_norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, inner, bias=False)
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        batch, length, width = x_BTD.shape
        qkv = self.qkv(self.norm(x_BTD)).view(batch, length, 3, HEADS, width // HEADS)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mixed = scaled_dot_product_attention(q, k, v, is_causal=True)
        x_BTD = x_BTD + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        return x_BTD + self.down(nn.functional.gelu(self.up(self.inner_norm(x_BTD))))


class Gpt(nn.Module):
    """A decoder that returns its mean loss."""

    def __init__(self, vocab: int, width: int, layers: int, length: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocab, width)
        self.places = nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(Block(width, width * 33 // 8) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocab, bias=False)
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        inputs, targets = tokens_BT[:, :-1], tokens_BT[:, 1:]
        places = torch.arange(inputs.shape[1])
        x_BTD = self.blocks(self.tokens(inputs) + self.places(places))
        logits = self.head(self.norm(x_BTD))
        return cross_entropy(logits.flatten(0, 1), targets.flatten())


@dataclass(frozen=True)
class Task:
    """What the driver asks for."""

    rank: int
    address: str
    port: int
    device: str
    tokens: str
    out: str
    variants: list[str]
    vocab: int
    width: int
    layers: int
    length: int
    batch: int
    warmup: int
    rounds: int
    steps: int
    dense_steps: int
    seed: int
    lr: float
    sgd_lr: float
    bucket_mb: int
    decay_steps: int


BRAID: dict[str, dict[str, Any]] = {
    "braid_dense": {"method": "none"},
    "braid_dgc": {"method": "dgc", "momentum": 0.9, "ratio": 0.001},
    "braid_dgc_warm": {"method": "dgc", "momentum": 0.9, "ratio": 0.002, "warmup_steps": 60},
    "braid_econtrol": {"method": "econtrol", "ratio": 0.01},
    "braid_ef": {"method": "ef", "ratio": 0.01},
    "braid_ef21": {"method": "ef21", "ratio": 0.01},
    "braid_powersgd": {"method": "powersgd"},
    "braid_powersgd4": {"method": "powersgd", "rank": 4},
    "braid_powersgd8": {"method": "powersgd", "rank": 8},
    "braid_powersgd8_fp4": {"method": "powersgd", "rank": 8, "values": "fp4"},
    "braid_powersgd16_fp4": {"method": "powersgd", "rank": 16, "values": "fp4"},
    "braid_powersgd32_fp4": {"method": "powersgd", "rank": 32, "values": "fp4"},
    "braid_econtrol5": {"method": "econtrol", "ratio": 0.05},
    "braid_econtrol_low_rank4": {"method": "econtrol", "contraction": "low_rank", "rank": 4},
    "braid_int8": {"method": "quantized"},
    "braid_fp4": {"method": "quantized", "block_format": "fp4"},
}
DENSE = ("ddp_fp32", "ddp_fp16", "ddp_sgd", "braid_dense")


class Variant:
    """One model that trains in one way."""

    def __init__(self, name: str, task: Task, batches: Callable[[int], Tensor]) -> None:
        torch.manual_seed(task.seed)
        module = Gpt(task.vocab, task.width, task.layers, task.length)
        self.name = name
        self.step_number = 0
        self.losses: list[float] = []
        self._batches = batches
        # torch's PowerSGD aborts with more than one bucket on gloo.
        bucket_mb = 4096 if name == "ddp_powersgd" else task.bucket_mb
        self._model = DistributedDataParallel(module, bucket_cap_mb=bucket_mb)
        self._exchange: Exchange | None = None
        if name in BRAID:
            config = CompressionConfig(**BRAID[name], seed=task.seed)
            self._exchange = Exchange(config, group=dist.new_group())
            self._model.register_comm_hook(DdpBuckets(self._exchange, module), ddp_hook)
        elif name == "ddp_fp16":
            self._model.register_comm_hook(None, fp16_compress_hook)
        elif name == "ddp_powersgd":
            state = PowerSGDState(None, matrix_approximation_rank=1, start_powerSGD_iter=2)
            self._model.register_comm_hook(state, powerSGD_hook)
        self._optimizer: torch.optim.Optimizer
        if name.startswith("braid_dgc"):
            self._optimizer = CorrectedSGD(module.parameters(), lr=task.sgd_lr, momentum=0.9)
        elif name == "ddp_sgd":
            self._optimizer = torch.optim.SGD(module.parameters(), lr=task.sgd_lr, momentum=0.9)
        else:
            self._optimizer = torch.optim.AdamW(module.parameters(), lr=task.lr, fused=True)
        self._schedule = LambdaLR(self._optimizer, partial(lr_share, steps=task.decay_steps))

    def step(self) -> None:
        """Train one step."""
        loss = self._model(self._batches(self.step_number))
        loss.backward()
        if self._exchange is not None:
            self._exchange.commit()
        self._optimizer.step()
        self._schedule.step()
        self._optimizer.zero_grad()
        self.step_number += 1
        self.losses.append(float(loss.detach()))

    def close(self) -> None:
        """End the exchange's thread."""
        if self._exchange is not None:
            self._exchange.close()


def lr_share(step: int, steps: int) -> float:
    """Share of the peak learning rate: 20 steps of warm-up, then a cosine to a tenth over `steps`;
    always all of it where `steps` is 0."""
    if not steps:
        return 1.0
    done = min(1.0, step / steps)
    return min(1.0, (step + 1) / 20) * (0.1 + 0.9 * (1 + math.cos(math.pi * done)) / 2)


def _batches(task: Task) -> Callable[[int], Tensor]:
    tokens = torch.from_numpy(np.load(task.tokens))

    def batch(step: int) -> Tensor:
        generator = torch.Generator().manual_seed(1_000_003 * task.seed + 2 * step + task.rank)
        starts = torch.randint(
            0, tokens.numel() - task.length - 1, (task.batch,), generator=generator
        )
        return torch.stack([tokens[s : s + task.length + 1] for s in starts.tolist()]).long()

    return batch


def _sent_bytes(device: str) -> int:
    return int(Path(f"/sys/class/net/{device}/statistics/tx_bytes").read_text())


def measure(task: Task) -> dict[str, Any]:
    """Seconds and bytes per step of each variant, in turns, and its losses."""
    batches = _batches(task)
    variants = [Variant(name, task, batches) for name in task.variants]
    warmup_bytes: dict[str, list[int]] = {}
    for variant in variants:
        counts = [_sent_bytes(task.device)]
        for _ in range(task.warmup):
            variant.step()
            counts.append(_sent_bytes(task.device))
        warmup_bytes[variant.name] = [after - before for before, after in pairwise(counts)]
    seconds: dict[str, list[float]] = {name: [] for name in task.variants}
    sent: dict[str, list[int]] = {name: [] for name in task.variants}
    for _ in range(task.rounds):
        for variant in variants:
            steps = task.dense_steps if variant.name in DENSE else task.steps
            dist.barrier()
            before, begin_s = _sent_bytes(task.device), time.perf_counter()
            for _ in range(steps):
                variant.step()
            dist.barrier()
            seconds[variant.name].append((time.perf_counter() - begin_s) / steps)
            sent[variant.name].append((_sent_bytes(task.device) - before) // steps)
    for variant in variants:
        variant.close()
    return {
        "seconds": seconds,
        "sent_bytes": sent,
        "warmup_bytes": warmup_bytes,
        "losses": {variant.name: variant.losses for variant in variants},
    }


def main() -> None:
    """Join the other rank, measure, and write what was found."""
    task = Task(**json.loads(Path(sys.argv[1]).read_text()))
    torch.set_num_threads(1)
    environment = RankEnvironment(
        rank=task.rank,
        world_size=2,
        local_rank=0,
        local_world_size=1,
        host=str(task.rank),
        master_address=task.address,
        master_port=task.port,
    )
    join(environment, deadline_s=120)
    Path(task.out).write_text(json.dumps(measure(task)))
    leave()


if __name__ == "__main__":
    main()
