"""The command line: `braid VERB`, also `python -m recipes.cli VERB`.

Each verb imports what it needs when it runs, so that looking at a recipe needs neither torch nor
ray, and answers at once.
"""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer

from recipes.bundled import FOLDER, bundled_recipes
from recipes.fault_commands import clean, drill, top
from recipes.load import LoadedRecipe, load_recipe
from recipes.options import WITH_OVERRIDES, AsJson, RecipeName, RunName, Step
from recipes.printing import error_record, print_error, print_json, print_table
from trainer.errors import BraidError, ExitCode, RecipeError
from trainer.run_folder import RunFolder

app = typer.Typer(
    name="braid",
    help="Train large models on Ray clusters from one YAML recipe.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

app.command(context_settings=WITH_OVERRIDES)(drill)
app.command()(top)
app.command()(clean)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one verb. Always ends in SystemExit, with the exit code as README lists it."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        app(args=given, prog_name="braid")
    except BraidError as error:
        if "--json" in given:
            print_json(error_record(error))
        print_error(error)
        sys.exit(int(error.exit_code))


@app.callback(invoke_without_command=True)
def _options(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        from recipes.machine import installed_version

        print(f"braid {installed_version('braid-train') or '(not installed)'}")
        raise typer.Exit


@app.command(context_settings=WITH_OVERRIDES)
def run(context: typer.Context, recipe: RecipeName) -> None:
    """Train here: on a Ray cluster of this machine, or the one that cluster.address names."""
    loaded = _load(recipe, context)
    from cluster.launch import launch
    from recipes.view import open_view

    with open_view() as view:
        code = launch(
            loaded.recipe.job,
            loaded.recipe.cluster,
            watchdog=loaded.recipe.watchdog,
            recovery=loaded.recipe.recovery,
            origins=loaded.origins,
            recipe_text=loaded.text,
            view=view,
        )
    if code is ExitCode.DONE and loaded.recipe.run.sample_prompt:
        _show_sample(loaded)
    raise typer.Exit(int(code))


@app.command(context_settings=WITH_OVERRIDES)
def submit(
    context: typer.Context,
    recipe: RecipeName,
    address: Annotated[str, typer.Option(help="Address of the cluster, http://HEAD:8265.")],
) -> None:
    """Train on a cluster elsewhere, as a Ray job."""
    loaded = _load(recipe, context)
    from cluster.submit import submit as submit_job
    from recipes.view import open_view

    with open_view() as view:
        code = submit_job(
            loaded.recipe.job,
            loaded.recipe.cluster,
            recipe_text=loaded.text,
            address=address,
            view=view,
        )
    raise typer.Exit(int(code))


@app.command(context_settings=WITH_OVERRIDES)
def check(
    context: typer.Context,
    recipe: RecipeName,
    device_memory_gib: Annotated[float, typer.Option(help="Memory of one GPU.")] = 80.0,
    build: Annotated[bool, typer.Option(help="Also build the model, without memory.")] = True,
    as_json: AsJson = False,
) -> None:
    """Check a recipe and say what it comes to: batch, parameters, layout, memory."""
    loaded = _load(recipe, context)
    from importlib.util import find_spec

    from recipes.check import check as check_recipe
    from recipes.check import dry_build

    report = check_recipe(loaded, device_memory_gib=device_memory_gib)
    built = None
    if build and find_spec("torch") is not None:
        built = dry_build(report.architecture)
        assert built == report.parameters, f"{built} parameters built, {report.parameters} counted"
    if as_json:
        print_json({"recipe": str(loaded.path), **report.record(), "built_parameters": built})
        return
    rows = [*report.rows(), ("dry build", "the model builds" if built else "skipped")]
    print_table(f"{report.name} is a valid recipe", rows)


@app.command(context_settings=WITH_OVERRIDES)
def invariance(
    context: typer.Context,
    recipe: RecipeName,
    steps: Annotated[int, typer.Option(help="Steps to compare.")] = 3,
    as_json: AsJson = False,
) -> None:
    """Train a few steps with 1, 2 and 4 ranks in 1, 2 and 4 rounds, and compare the losses."""
    loaded = _load(recipe, context)
    from recipes.invariance import compare, report_record, report_rows, variants_of

    variants = variants_of(loaded.recipe.job, worlds=(1, 2, 4), rounds=(1, 2, 4))
    comparisons = compare(loaded.recipe.job, variants, steps=steps)
    holds = all(c.holds for c in comparisons)
    if as_json:
        print_json(report_record(comparisons))
    else:
        verdict = "agree" if holds else "do NOT agree"
        print_table(f"losses of {loaded.path.name} {verdict}", report_rows(comparisons))
    raise typer.Exit(int(ExitCode.DONE if holds else ExitCode.NUMERIC))


@app.command(context_settings=WITH_OVERRIDES)
def show(context: typer.Context, recipe: RecipeName, as_json: AsJson = False) -> None:
    """Print every value of a recipe and where it was set."""
    loaded = _load(recipe, context)
    from recipes.show import lines, record

    if as_json:
        print_json(record(loaded))
        return
    for line in lines(loaded):
        print(line)


@app.command()
def schema() -> None:
    """Print the JSON Schema of recipes, for editors."""
    from recipes.schema import json_schema

    print_json(json_schema())


@app.command()
def doctor(
    run_dir: Annotated[Path, typer.Option(help="Where run folders are to go.")] = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Say whether this machine can train, and what to do where it cannot."""
    from dataclasses import asdict

    from recipes.doctor import examine
    from recipes.machine import look_at

    tested = json.loads((FOLDER / "tested_versions.json").read_text(encoding="utf-8"))
    machine = look_at(
        packages=tested["packages"], run_dir=run_dir, environ=os.environ, home=Path.home()
    )
    findings = examine(machine, tested)
    healthy = all(finding.verdict != "problem" for finding in findings)
    if as_json:
        print_json({"healthy": healthy, "findings": [asdict(finding) for finding in findings]})
    else:
        rows = [(f"{f.verdict:<8}{f.name}", f.with_remedy()) for f in findings]
        title = "ready to train" if healthy else "not ready: see the problems"
        print_table(title, rows)
    raise typer.Exit(int(ExitCode.DONE if healthy else ExitCode.RESOURCES))


@app.command()
def generate(
    run: RunName,
    prompt: Annotated[str, typer.Option(help="Text to go on from.")],
    max_new_tokens: Annotated[int, typer.Option(help="Most tokens to make.")] = 128,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token.")] = 0.8,
    top_p: Annotated[float, typer.Option(help="Share of likelihood to draw from.")] = 0.95,
    seed: Annotated[int, typer.Option(help="Seed of the draws.")] = 0,
    step: Step = None,
) -> None:
    """Go on from a prompt with a run's model."""
    from recipes.inference import continuation, open_run

    trained = open_run(run, step)
    pieces = continuation(
        trained,
        prompt,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
    )
    for position, piece in enumerate(pieces):
        print(piece if position else prompt + piece, end="", flush=True)
    print()


@app.command()
def export(
    run: RunName,
    to: Annotated[Path, typer.Option(help="Folder to make.")],
    step: Step = None,
    dtype: Annotated[Literal["bf16", "fp32"], typer.Option(help="Type of weights.")] = "bf16",
) -> None:
    """Write a run's model as a Hugging Face folder."""
    from recipes.inference import export as export_run
    from recipes.inference import open_run

    trained = open_run(run, step)
    export_run(trained, to, dtype=dtype)
    print(f"step {trained.step} of {run} is in {to}")


@app.command("ls")
def list_bundled(as_json: AsJson = False) -> None:
    """List the bundled recipes."""
    bundled = bundled_recipes()
    if as_json:
        print_json([{"name": b.name, "path": str(b.path), "summary": b.summary} for b in bundled])
        return
    width = max(len(b.name) for b in bundled)
    for b in bundled:
        print(f"{b.name:<{width}}  {b.summary}")


def _show_sample(loaded: LoadedRecipe) -> None:
    """What the finished run writes. It is done whether or not this works."""
    from recipes.inference import show_sample

    try:
        show_sample(RunFolder.of(loaded.recipe.run).root, loaded.recipe.run.sample_prompt)
    except (BraidError, OSError, RuntimeError) as error:
        print(f"no sample: {error}", file=sys.stderr)


def _load(recipe: str, context: typer.Context) -> LoadedRecipe:
    if recipe.startswith("--"):
        raise RecipeError(f"the recipe comes before its overrides, but {recipe} is first")
    return load_recipe(recipe, context.args)


if __name__ == "__main__":
    main()
