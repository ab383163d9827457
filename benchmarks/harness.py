"""What all benchmarks share: medians of alternating runs, their spread, one JSON document."""

import argparse
import json
import platform
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date

import torch


def median_ratio(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float]:
    """Median of the pairwise ratios, and half the distance between their quartiles."""
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    if len(ratios) < 2:
        return ratios[0], 0.0
    low, _, high = statistics.quantiles(ratios, n=4)
    return statistics.median(ratios), (high - low) / 2


def machine() -> str:
    """What the figures were measured on."""
    cores = torch.multiprocessing.cpu_count()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU only"
    return f"{platform.machine()}, {cores} cores, {device}, torch {torch.__version__}"


@dataclass(kw_only=True)
class Result:
    """The figures of one benchmark."""

    name: str
    braid: dict[str, float] = field(default_factory=dict)
    peers: dict[str, dict[str, float]] = field(default_factory=dict)
    ratios: dict[str, float] = field(default_factory=dict)
    spread: dict[str, float] = field(default_factory=dict)
    """Half the interquartile distance of each ratio."""

    missing: list[str] = field(default_factory=list)
    """What a benchmark that is done in parts has still to measure."""

    def ratio(self, figure: str, ours: Sequence[float], theirs: Sequence[float]) -> None:
        """Record the median ratio of paired measurements."""
        self.ratios[figure], self.spread[figure] = median_ratio(ours, theirs)

    def show(self, *, as_json: bool) -> None:
        """Print one JSON document, or a few lines for people."""
        if as_json:
            document = {"machine": machine(), "date": date.today().isoformat(), **vars(self)}
            print(json.dumps(document, indent=2))
            return
        print(f"{self.name} on {machine()}")
        for figure, value in self.braid.items():
            print(f"  braid {figure}: {value:.4g}")
        for peer, figures in self.peers.items():
            for figure, value in figures.items():
                print(f"  {peer} {figure}: {value:.4g}")
        for figure, value in self.ratios.items():
            print(f"  ratio {figure}: {value:.3f} ± {self.spread[figure]:.3f}")
        if self.missing:
            print(f"  still to measure: {', '.join(self.missing)}")


def options(description: str | None, **defaults: int | str) -> argparse.Namespace:
    """The command line of a benchmark: one option per default, a switch for each False, and
    --json."""
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    for name, default in defaults.items():
        if isinstance(default, bool):
            parser.add_argument(f"--{name}", action="store_true", default=default)
        else:
            parser.add_argument(f"--{name}", type=type(default), default=default)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()
