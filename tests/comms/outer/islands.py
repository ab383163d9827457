"""Islands for tests: a small model, its own batches, an outer optimizer."""

import torch
import torch.distributed as dist
from torch import Tensor, nn

from comms.ledger import Ledger
from comms.outer.config import DilocoConfig
from comms.outer.diloco import Merged, StreamingDiloco
from comms.outer.schedule import split_parameters

PLAIN = {"overlap_steps": 0, "mixing": 0.0, "wire": "fp32", "outer_momentum": 0.0, "outer_lr": 1.0}
STREAM = {"every": 9, "overlap_steps": 2, "mixing": 0.5, "wire": "e3m0"}


def make_model(seed: int = 0) -> nn.Sequential:
    """Three layers in float32."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(9, 14), nn.Tanh(), nn.Linear(14, 14), nn.Tanh(), nn.Linear(14, 3)
    )


def fragments_of(model: nn.Module, count: int) -> list[dict[str, nn.Parameter]]:
    """The layers, strided."""
    return split_parameters(dict(model.named_parameters()), ["0", "2", "4"], count)


def batch_of(rank: int, step: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets of a stream of data at a step."""
    generator = torch.Generator().manual_seed(1000 * rank + step)
    return torch.randn(8, 9, generator=generator), torch.randn(8, 3, generator=generator)


class Island:
    """A model that trains on its own batches, with an outer optimizer."""

    def __init__(self, stream: int, outer: dict[str, object], fragments: int = 3, **more) -> None:
        self.stream = stream
        self.model = more.pop("model", None) or make_model()
        self.steps = 0
        kind = more.pop("optimizer", torch.optim.SGD)
        self.inner = kind(self.model.parameters(), lr=0.05)
        self.ledger = Ledger()
        group = more.pop("group", None)
        if group is None and not more.pop("alone", False):
            group = dist.new_group(backend="gloo")
        more.pop("alone", None)
        self.outer = StreamingDiloco(
            fragments_of(self.model, fragments),
            group=group,
            config=DilocoConfig(**outer),
            ledger=self.ledger,
            **more,
        )

    def step(self) -> Merged | None:
        """Train one step and exchange what is due."""
        self.local_step()
        return self.outer.step()

    def local_step(self) -> None:
        """Train one step of the inner optimizer alone."""
        inputs, targets = batch_of(self.stream, self.steps)
        nn.functional.mse_loss(self.model(inputs), targets).backward()
        self.inner.step()
        self.inner.zero_grad()
        self.steps += 1

    def parameters(self) -> list[Tensor]:
        """Copies of the parameters."""
        return [p.detach().clone() for p in self.model.parameters()]
