"""How long a thread waited for a core."""

import os


def waited_for_core_s() -> float:
    """Seconds in which the calling thread wanted a core and had none, since it began; 0 where the
    system does not say."""
    try:
        file = os.open("/proc/thread-self/schedstat", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return 0.0
    try:
        return int(os.read(file, 256).split()[1]) / 1e9
    finally:
        os.close(file)
