"""Tasks and environments that users bring, by name. Free of torch.

They run in the process that samples and are trusted like the recipe itself. What judges generated
code belongs into a reward function (`rl.reward.function`), which is confined.
"""

import importlib
from collections.abc import Callable
from typing import Any

from trainer.errors import RecipeError


def load_factory(key: str, name: str) -> Callable[..., Any]:
    """The function or class `name`, written `module:function`.

    Raises RecipeError, naming the recipe's `key`, where there is none.
    """
    module_name, _, function_name = name.partition(":")
    try:
        found = vars(importlib.import_module(module_name)).get(function_name)
    except ImportError as error:
        raise RecipeError(
            f"{key}={name} cannot be imported ({error}); correct it, or put its folder on "
            "PYTHONPATH"
        ) from error
    if not callable(found):
        raise RecipeError(f"{key}={name}: {module_name} has no function or class {function_name!r}")
    return found
