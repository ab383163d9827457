"""The recipes that ship with Braid."""

from dataclasses import dataclass
from pathlib import Path

from recipes.suggestions import nearest
from trainer.errors import RecipeError

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Bundled:
    """A shipped recipe."""

    name: str
    path: Path
    summary: str
    """First comment line that is not for editors."""


def bundled_recipes() -> list[Bundled]:
    """All of them, by name."""
    return [
        Bundled(path.stem, path, _summary(path.read_text(encoding="utf-8")))
        for path in sorted(FOLDER.glob("*.yaml"))
    ]


def _summary(text: str) -> str:
    for line in text.splitlines():
        comment = line.lstrip("# ").strip() if line.startswith("#") else ""
        if comment and not comment.startswith("yaml-language-server"):
            return comment
    return ""


def find_recipe(path_or_name: str, beside: Path) -> Path:
    """The recipe file that is meant: a path relative to the folder `beside`, or a bundled name.

    Raises RecipeError with the nearest name where there is none.
    """
    path = beside / Path(path_or_name).expanduser()
    if path.is_file():
        return path
    named = FOLDER / f"{path_or_name}.yaml"
    if "/" not in path_or_name and named.is_file():
        return named
    if path.is_dir():
        raise RecipeError(f"{path_or_name} is a folder; name the recipe file in it")
    names = [bundled.name for bundled in bundled_recipes()]
    files = [str(file.relative_to(path.parent)) for file in path.parent.glob("*.yaml")]
    close = nearest(path.name, [*files, *names]) or nearest(path.stem, names)
    hint = f"did you mean {close}? " if close else ""
    raise RecipeError(
        f"there is no recipe {path_or_name!r}, neither a file nor a bundled one; {hint}"
        f"bundled recipes are {', '.join(names)}"
    )
