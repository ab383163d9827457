"""A loaded recipe with where each value came from."""

from typing import Any

from recipes.load import LoadedRecipe
from recipes.yaml_marks import scalar_text
from trainer.reads import leaves_of


def record(loaded: LoadedRecipe) -> dict[str, Any]:
    """For scripts: dotted key to value and origin."""
    return {
        key: {"value": value, "origin": loaded.origins[key]}
        for key, value in leaves_of(loaded.recipe)
    }


def lines(loaded: LoadedRecipe) -> list[str]:
    """For people: key, value and origin in columns."""
    rows = [
        (key, scalar_text(list(value) if isinstance(value, tuple) else value))
        for key, value in leaves_of(loaded.recipe)
    ]
    key_width = max(len(key) for key, _ in rows)
    value_width = min(32, max(len(value) for _, value in rows))
    return [
        f"{key:<{key_width}}  {value:<{value_width}}  {loaded.origins[key]}" for key, value in rows
    ]
