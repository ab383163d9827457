"""Commands about faults: plant one, and watch a run."""

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from recipes.options import AsJson, RecipeName, RunName
from recipes.printing import print_json, print_table
from recipes.wording import gib
from trainer.errors import ExitCode
from trainer.run_folder import RunFolder


def drill(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Such as kill-worker or hang-worker.")],
    recipe: RecipeName = "quickstart",
    at_step: Annotated[int, typer.Option(help="Step after which the fault comes.")] = 10,
    seed: Annotated[int, typer.Option(help="Chooses the process.")] = 0,
    limit_s: Annotated[float, typer.Option(help="Longest time of a run.")] = 900.0,
    cut_s: Annotated[float, typer.Option(help="How long cut-link cuts.")] = 3.0,
    folder: Annotated[Path | None, typer.Option(help="Where to keep both runs.")] = None,
    as_json: AsJson = False,
) -> None:
    """Plant a fault in a run of a recipe and judge what came of it."""
    from recipes.drill import Drill
    from recipes.drill import drill as run_drill

    place = folder or Path(tempfile.mkdtemp(prefix=f"braid-{name}-"))
    verdict, run = run_drill(
        Drill(
            name=name,
            recipe=recipe,
            overrides=context.args,
            folder=place.absolute(),
            at_step=at_step,
            seed=seed,
            limit_s=limit_s,
            cut_s=cut_s,
        )
    )
    record = {**asdict(verdict), "run_dir": str(run.root)}
    if as_json:
        print_json(record)
    else:
        print_table(f"drill {name}", [(key, str(value)) for key, value in record.items()])
    raise typer.Exit(int(ExitCode.DONE if verdict.held else ExitCode.INFRASTRUCTURE))


def clean(run: RunName, as_json: AsJson = False) -> None:
    """Free the memory of this host that an ended run holds for its next start."""
    from recipes.clean import clean as clean_run
    from recipes.clean import other_hosts

    folder = RunFolder(Path(run).expanduser().absolute())
    freed = clean_run(folder)
    others = other_hosts(folder)
    if as_json:
        print_json({"freed": {str(path): size for path, size in freed.items()}, "others": others})
        return
    rows = [(str(path), f"{gib(size)} freed") for path, size in freed.items()]
    if others:
        rows.append(("other hosts", f"run it there too: {', '.join(others)}"))
    print_table(run, rows or [("memory", "nothing was held here")])


def top(
    run: RunName,
    once: Annotated[bool, typer.Option(help="Print the state once and end.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show what a run is doing: steps, ranks and what happened to them."""
    from recipes.top import follow, state_of

    folder = Path(run)
    if as_json:
        print_json(asdict(state_of(folder)))
    elif once:
        state = state_of(folder)
        print_table(state.name, state.rows())
    else:
        follow(folder)
