"""Which files a recipe's `data.source` means, and in which format they are read.

Files are named relative to the source and sorted by that name, so the same data in another place
is the same source. A folder is read with its sub-folders; hidden files and folders are left out.
Under `format: auto` a folder that holds Parquet is Parquet, else one that holds JSON lines is
JSON lines, else its text and code files are read: data sets come with a README.

`python_stdlib` is the `*.py` of the running interpreter's standard library without installed
packages and without test folders: about 12 MB of code of one kind; the tests hold generated
tables and files that are wrong on purpose.
"""

import glob
import os
import sysconfig
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NoReturn

from trainer.errors import DataError

Format = Literal["text", "jsonl", "parquet"]

TEXT_SUFFIXES = frozenset(
    [
        ".txt",
        ".text",
        ".md",
        ".rst",
        ".tex",
        ".html",
        ".htm",
        ".xml",
        ".csv",
        ".tsv",
        ".org",
        ".adoc",
        ".py",
        ".pyi",
        ".ipynb",
        ".c",
        ".h",
        ".cc",
        ".cpp",
        ".cxx",
        ".hpp",
        ".cu",
        ".cuh",
        ".rs",
        ".go",
        ".java",
        ".kt",
        ".scala",
        ".swift",
        ".m",
        ".mm",
        ".js",
        ".jsx",
        ".ts",
        ".tsx",
        ".mjs",
        ".css",
        ".scss",
        ".php",
        ".rb",
        ".pl",
        ".pm",
        ".lua",
        ".r",
        ".jl",
        ".hs",
        ".ml",
        ".mli",
        ".ex",
        ".exs",
        ".erl",
        ".clj",
        ".lisp",
        ".el",
        ".scm",
        ".f",
        ".f90",
        ".sql",
        ".sh",
        ".bash",
        ".zsh",
        ".fish",
        ".ps1",
        ".bat",
        ".cmake",
        ".mk",
        ".toml",
        ".yaml",
        ".yml",
        ".ini",
        ".cfg",
        ".json",
        ".proto",
        ".tf",
        ".v",
        ".sv",
        ".vhd",
        ".asm",
        ".s",
        ".cs",
        ".fs",
        ".vb",
        ".dart",
        ".zig",
        ".nim",
        ".d",
        ".pas",
        ".lean",
        ".diff",
        ".patch",
        ".log",
    ]
)
LINE_SUFFIXES = frozenset({".jsonl", ".ndjson"})
SUFFIXES: dict[Format, frozenset[str]] = {
    "text": TEXT_SUFFIXES,
    "jsonl": LINE_SUFFIXES | {".json"},
    "parquet": frozenset({".parquet", ".pq"}),
}
COMPRESSED = frozenset({".gz", ".bz2", ".xz", ".zst", ".zip", ".tar", ".lz4"})
NOT_LIBRARY = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test"})


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file as it was found."""

    path: str
    name: str
    """Path relative to the source, with forward slashes."""

    size_bytes: int
    mtime_ns: int


@dataclass(frozen=True)
class Source:
    """Files in reading order, all of one format."""

    description: str
    format: Format
    files: tuple[SourceFile, ...]


def find_source(source: str, format: str) -> Source:
    """List the files of `data.source`, reading none.

    Raises DataError where there is nothing to read.
    """
    if source == "python_stdlib":
        root = Path(sysconfig.get_path("stdlib"))
        files = [path for path in _walk(root, NOT_LIBRARY) if path.suffix == ".py"]
        return _source(source, "text", root, files)
    path = Path(source).expanduser().absolute()
    if path.is_dir():
        return _folder(path, format)
    if path.is_file():
        return _source(str(path), _format_of([path], format), path.parent, [path])
    if glob.has_magic(source):
        return _pattern(str(path), format)
    raise DataError(
        f"data.source={source} does not exist (looked at {path}); give a folder, a file or a "
        "pattern that this machine can see"
    )


def _folder(root: Path, format: str) -> Source:
    found = list(_walk(root, frozenset()))
    if not found:
        raise DataError(f"data.source={root} is an empty folder; put text or code files there")
    resolved = _format_of(found, format)
    present = {path.suffix.lower() for path in found}
    suffixes = SUFFIXES[resolved]
    if resolved == "jsonl" and present & LINE_SUFFIXES:
        # Beside .jsonl files, .json ones describe the data set.
        suffixes = LINE_SUFFIXES
    files = [path for path in found if path.suffix.lower() in suffixes]
    if not files:
        counts = Counter(path.suffix.lower() or "no suffix" for path in found)
        kinds = ", ".join(f"{suffix} ×{count}" for suffix, count in counts.most_common(5))
        raise DataError(
            f"data.source={root} holds no {resolved} file (found {kinds}); name the files with a "
            "pattern such as folder/*.ext, or set data.format"
        )
    return _source(str(root), resolved, root, files)


def _pattern(pattern: str, format: str) -> Source:
    files = [Path(name) for name in glob.glob(pattern, recursive=True) if Path(name).is_file()]
    if not files:
        raise DataError(f"no file matches data.source={pattern}; correct the pattern")
    root = Path(os.path.commonpath([file.parent for file in files]))
    return _source(pattern, _format_of(files, format), root, files)


def _format_of(files: Iterable[Path], format: str) -> Format:
    if format in ("text", "jsonl", "parquet"):
        return format  # type: ignore[return-value]
    suffixes = {path.suffix.lower() for path in files}
    if suffixes & SUFFIXES["parquet"]:
        return "parquet"
    if suffixes & LINE_SUFFIXES or suffixes == {".json"}:
        return "jsonl"
    return "text"


def _source(description: str, format: Format, root: Path, files: list[Path]) -> Source:
    packed = [path for path in files if path.suffix.lower() in COMPRESSED]
    if packed:
        raise DataError(f"{packed[0]} is compressed; decompress it, or convert it to Parquet")
    listed = [_file(path, root) for path in files]
    return Source(description, format, tuple(sorted(listed, key=lambda file: file.name)))


def _file(path: Path, root: Path) -> SourceFile:
    try:
        status = path.stat()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    name = path.relative_to(root).as_posix()
    return SourceFile(str(path), name, status.st_size, status.st_mtime_ns)


def _walk(root: Path, without: frozenset[str]) -> Iterator[Path]:
    seen: set[tuple[int, int]] = set()
    for folder, subfolders, names in os.walk(root, onerror=_refuse, followlinks=True):
        if not _is_new(folder, seen):
            subfolders.clear()
            continue
        # Sorted, so that a folder with several links is always read under the same name.
        subfolders[:] = sorted(n for n in subfolders if _is_source(n) and n not in without)
        for name in names:
            path = Path(folder, name)
            if _is_source(name) and path.is_file():
                yield path


def _is_new(folder: str, seen: set[tuple[int, int]]) -> bool:
    # Links may lead back to a folder above them.
    try:
        status = os.stat(folder)
    except OSError as error:
        _refuse(error)
    identity = (status.st_dev, status.st_ino)
    known = identity in seen
    seen.add(identity)
    return not known


def _is_source(name: str) -> bool:
    return not name.startswith(".") and name != "__pycache__"


def _refuse(error: OSError) -> NoReturn:
    raise DataError(f"{error.filename} cannot be listed: {error.strerror}") from error
