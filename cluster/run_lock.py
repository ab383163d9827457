"""One run folder, one driver: a lock that lasts as long as the driver's process at most."""

from collections.abc import Iterator
from contextlib import contextmanager

from trainer.errors import RecipeError, ResourceError
from trainer.folder_lock import try_lock
from trainer.run_folder import RunFolder


@contextmanager
def held(folder: RunFolder) -> Iterator[None]:
    """Be the only driver of the run inside the context; makes the folder.

    A file system without locks lets everyone in. Raises RecipeError where another driver holds the
    folder, ResourceError where the disk refuses.
    """
    try:
        folder.root.mkdir(parents=True, exist_ok=True)
        file = (folder.root / ".lock").open("ab")
    except OSError as error:
        raise ResourceError(
            f"cannot write to the run folder {folder.root}: {error}; set run.dir to a folder that "
            "can be written"
        ) from error
    with file:
        if not try_lock(file):
            raise RecipeError(
                f"another driver is running in the run folder {folder.root}; wait for its end or "
                "stop it, or choose another run.name"
            )
        yield
