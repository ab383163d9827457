"""A recipe file and overrides become a checked `Recipe` that knows where each value came from.

Layers, later ones winning: the dataclasses' defaults, `defaults:` and `base:` of the file, the
file itself, the command line. References are written out after all layers are merged.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from recipes.bundled import find_recipe
from recipes.dump import resolved_text
from recipes.keys import key_table
from recipes.overrides import parse_overrides
from recipes.paths import shown
from recipes.problems import DEFAULT, Problem, RecipeProblems
from recipes.references import References
from recipes.schema import Recipe
from recipes.tree import as_defaults, find, leaves, merge, nest
from recipes.validate import validate
from recipes.yaml_marks import Entry, MarkedReader
from trainer.errors import RecipeError
from trainer.reads import leaves_of

DEFAULTS = dict(leaves_of(Recipe()))


@dataclass(frozen=True, kw_only=True)
class LoadedRecipe:
    """A recipe that may be run."""

    recipe: Recipe
    origins: Mapping[str, str]
    """Every dotted key with where it was set: `file:line`, `command line` or `default`."""

    path: Path
    text: str
    """The recipe with everything written out, as YAML that loads to the same recipe and origins of
    the same kind."""


def load_recipe(path_or_name: str, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """Load a file or a bundled recipe, with overrides in any spelling (recipes/overrides.py).

    Raises RecipeProblems, which lists everything that is wrong, and RecipeError where there is no
    such file.
    """
    problems: list[Problem] = []
    path = find_recipe(path_or_name, Path.cwd())
    tree = merge(_read_chain(path, (), problems), _from_command_line(overrides, problems))
    name = find(tree, "run.name")
    if name is None or name.value in ("", None):
        tree = merge(tree, nest("run.name", Entry(path.stem, DEFAULT)))
    tree = References(tree, key_table(Recipe), DEFAULTS, problems).resolved()
    recipe = validate(tree, problems)
    if problems or recipe is None:
        raise RecipeProblems(shown(path), problems)
    origins = _origins(recipe, tree)
    text = resolved_text(recipe, origins, title=f"{shown(path)} with everything written out.")
    return LoadedRecipe(recipe=recipe, origins=origins, path=path, text=text)


def _from_command_line(overrides: Sequence[str], problems: list[Problem]) -> dict[str, Entry]:
    return parse_overrides(overrides, key_table(Recipe), problems)


def _read_chain(path: Path, above: tuple[Path, ...], problems: list[Problem]) -> dict[str, Entry]:
    """The file on top of its bases."""
    path = path.absolute()
    tree = _read(path, problems)
    base = tree.pop("base", None)
    defaults = tree.pop("defaults", None)
    if defaults is not None and isinstance(defaults.value, dict):
        tree = merge(as_defaults(defaults.value), tree)
    elif defaults is not None:
        problems.append(Problem(defaults.origin, "defaults", "expected a mapping of sections"))
    if base is None:
        return tree
    if not isinstance(base.value, str):
        problems.append(Problem(base.origin, "base", "expected a bundled name or a path"))
        return tree
    try:
        below = find_recipe(base.value, path.parent).resolve()
    except RecipeError as error:
        problems.append(Problem(base.origin, "base", str(error)))
        return tree
    chain = (*above, path.resolve())
    if below in chain:
        circle = " -> ".join(shown(link) for link in (*chain[chain.index(below) :], below))
        problems.append(Problem(base.origin, "base", f"recipes inherit in a circle: {circle}"))
        return tree
    return merge(_read_chain(below, chain, problems), tree)


def _read(path: Path, problems: list[Problem]) -> dict[str, Entry]:
    place = shown(path)
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise RecipeError(f"{place} is not text in UTF-8; is it a recipe?") from None
    except OSError as error:
        raise RecipeError(f"{place} cannot be read: {error.strerror}") from None
    root = MarkedReader(place, problems).read(text)
    if root is None:
        return {}
    if not isinstance(root.value, dict):
        problems.append(Problem(root.origin, "", "a recipe is a mapping of sections"))
        return {}
    return _filled_in(root.value)


def _filled_in(tree: dict[str, Entry]) -> dict[str, Entry]:
    """A section whose keys are all commented out is an empty one."""
    table = key_table(Recipe)
    required = table.sections - table.leaves.keys()
    for key, entry in list(leaves(tree)):
        if entry.value is None and key in required:
            tree = merge(tree, nest(key, Entry({}, entry.origin)))
    return tree


def _origins(recipe: Recipe, tree: Mapping[str, Entry]) -> dict[str, str]:
    origins = {}
    for key, _ in leaves_of(recipe):
        entry = find(tree, key)
        origin = entry.origin if entry is not None else DEFAULT
        origins[key] = str(DEFAULT if origin.is_default else origin)
    return origins
