"""The index of a source, made once and kept: files, blocks of documents, fingerprint.

Kept under the files' places, sizes and times, so that an unchanged source is not read again.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from trainer.data.blocks import SPAN, Blocks
from trainer.data.cache import digest, locked, make_folder, written_aside
from trainer.data.config import DataConfig
from trainer.data.scan import Scan, Scanner, TooLarge
from trainer.data.source import Format, Source, SourceFile, find_source
from trainer.errors import DataError, RecipeError

VERSION = 1
"""Part of every key; raised when an index of old would be read wrongly."""


@dataclass(frozen=True)
class SourceIndex:
    """A source and where its documents lie."""

    description: str
    format: Format
    field: str
    """Field with the document; empty for text files."""

    files: tuple[SourceFile, ...]
    """As they were before the scan."""

    scan: Scan

    @property
    def paths(self) -> tuple[str, ...]:
        """Where the files are."""
        return tuple(file.path for file in self.files)

    @property
    def blocks(self) -> Blocks:
        """Which documents are tokenised together."""
        return self.scan.blocks


def open_index(config: DataConfig) -> SourceIndex:
    """The index of the recipe's source, made if it is not in the cache.

    One process of a host makes it, the others wait. Raises DataError where the source has nothing
    to read or, under `on_bad: error`, a document over the limit.
    """
    source = find_source(config.source, config.format)
    field = _field_of(config, source)
    settings = (VERSION, source.format, field, config.block_bytes, config.max_document_bytes)
    key = digest(settings, [[f.path, f.size_bytes, f.mtime_ns] for f in source.files])
    folder = make_folder(cache_root(config) / "index" / key)
    if not (folder / "scan.json").exists():
        with locked(folder / "lock", f"reading {source.description} for the first time"):
            if not (folder / "scan.json").exists():
                scanner = Scanner(source, field, config.block_bytes, config.max_document_bytes)
                _write(folder, scanner.run())
    scan = _read(folder)
    _require_documents(source, scan, config)
    return SourceIndex(source.description, source.format, field, source.files, scan)


def cache_root(config: DataConfig) -> Path:
    """The folder that `data.cache_dir` names."""
    return Path(config.cache_dir).expanduser().absolute()


def _field_of(config: DataConfig, source: Source) -> str:
    if config.kind != "pretrain" and source.format == "text":
        raise RecipeError(
            f"data.kind={config.kind} reads JSON lines or Parquet, but data.source="
            f"{source.description} is text; name such files, or set data.kind=pretrain"
        )
    if config.kind == "chat":
        return config.messages_field
    return "" if source.format == "text" else config.text_field


def _require_documents(source: Source, scan: Scan, config: DataConfig) -> None:
    if scan.too_large and config.on_bad == "error":
        first = scan.too_large[0]
        place = f"{first.name}:{first.line}" if first.line else first.name
        raise DataError(
            f"{place} in {source.description} holds a document of {first.size_bytes:,} bytes, "
            f"over data.max_document_bytes={config.max_document_bytes:,} (of such documents: "
            f"{len(scan.too_large)}); raise the limit, or set data.on_bad=skip"
        )
    if not scan.blocks.count:
        raise DataError(
            f"data.source={source.description} holds no document: {len(source.files)} file(s), all "
            "empty or over data.max_document_bytes; put text there"
        )


def _write(folder: Path, scan: Scan) -> None:
    with written_aside(folder / "spans") as file:
        file.write(scan.blocks.spans.tobytes())
    with written_aside(folder / "ends") as file:
        file.write(scan.blocks.ends.tobytes())
    facts = {
        "fingerprint": scan.fingerprint,
        "too_large": [asdict(document) for document in scan.too_large],
    }
    with written_aside(folder / "scan.json") as file:
        file.write(json.dumps(facts).encode())


def _read(folder: Path) -> Scan:
    facts = json.loads((folder / "scan.json").read_text())
    blocks = Blocks(
        spans=np.fromfile(folder / "spans", dtype=SPAN),
        ends=np.fromfile(folder / "ends", dtype=np.int64),
    )
    too_large = tuple(TooLarge(**document) for document in facts["too_large"])
    return Scan(blocks, too_large, facts["fingerprint"])
