"""Measurements that are kept in a folder, so that a long benchmark can be done in parts."""

import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class Kept:
    """What was measured so far, one file per measurement; nothing is kept without a folder.

    No measurement but the first begins once `minutes` have passed (0: no limit): the same command
    goes on from there. Ends the program where the folder has figures of other settings.
    """

    def __init__(
        self,
        folder: str,
        minutes: float,
        settings: Mapping[str, Any],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.missing: list[str] = []
        """Measurements that are still to be made."""

        self._folder = Path(folder) if folder else None
        self._begun = False
        self._clock = clock
        self._end_s = clock() + 60 * minutes if minutes else float("inf")
        self._settings = json.loads(json.dumps(dict(settings)))
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def place(self) -> Iterator[Path]:
        """A folder for what measurements are made of: the one that is kept, or one for now."""
        if self._folder is not None:
            yield self._folder
        else:
            with tempfile.TemporaryDirectory() as folder:
                yield Path(folder)

    def measured(self, name: str, measure: Callable[[], Any]) -> Any | None:
        """What `measure` returned, now or in an earlier part; None where it is still to be done."""
        file = None if self._folder is None else self._folder / f"{name}.json"
        if file is not None and file.exists():
            kept = json.loads(file.read_text())
            if kept["settings"] != self._settings:
                raise SystemExit(f"{file} was measured with other settings; give another --keep.")
            return kept["found"]
        if self._begun and self._clock() >= self._end_s:
            self.missing.append(name)
            return None
        self._begun = True
        found = measure()
        if file is not None:
            aside = file.with_suffix(".part")
            aside.write_text(json.dumps({"settings": self._settings, "found": found}))
            aside.rename(file)
        return found


def settings_of(arguments: Any) -> dict[str, Any]:
    """Everything that a figure depends on, of a benchmark's command line."""
    others = ("json", "keep", "minutes", "seeds", "seed", "variants", "rates")
    return {name: value for name, value in vars(arguments).items() if name not in others}
