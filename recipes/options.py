"""Arguments and options that several commands share."""

from typing import Annotated

import typer

WITH_OVERRIDES = {"allow_extra_args": True, "ignore_unknown_options": True}
"""What follows the recipe is an override: `a.b=value`, `--a.b value`, `--a.b=value`, `--no-a.b`."""

RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="File or bundled name.")]
RunName = Annotated[str, typer.Argument(metavar="RUN", help="Run folder, such as runs/NAME.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
Step = Annotated[int | None, typer.Option(help="Checkpoint to take; the newest by default.")]
