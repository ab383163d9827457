"""run.json: what the run ran with."""

import json
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from cluster.probe import versions
from cluster.reading import Place
from cluster.run import Run
from trainer.run_folder import write_atomically


def write_run_info(run: Run, places: Sequence[Place]) -> None:
    """Replace run.json."""
    info = {
        "name": run.job.run.name,
        "project": run.job.run.project,
        "seed": run.job.run.seed,
        "started": time.time(),
        "versions": versions(),
        "commit": commit_of(Path(__file__).parent),
        "hosts": [
            {"rank": place.rank, "host": place.host, "address": place.address} for place in places
        ],
    }
    write_atomically(run.folder.info, json.dumps(info, indent=2) + "\n")


def commit_of(source: Path) -> str | None:
    """The git commit of a folder, with `-dirty` where files differ from it; None outside git."""
    try:
        answer = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--match="],
            cwd=source,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()
