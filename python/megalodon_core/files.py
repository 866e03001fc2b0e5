"""Files that are there whole or not at all, and JSON in them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from megalodon_core.errors import UserError


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Gives a path to write to, which then takes the place of `path` in one step, flushed to the disk.

    If the body raises, what was at `path` stays and what was written is removed.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.writing")
    try:
        yield temporary
        flush(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    flush(path.parent)


def write_json(path: Path, value: object) -> None:
    """Replaces `path` by the JSON of `value`, as `atomic_write` does."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it does not hold a JSON object; the text names it.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def flush(path: Path) -> None:
    """Waits until a file's content, or a directory's entries, are on the disk."""
    # Windows flushes only what is open for writing, and no directories.
    if os.name != "posix" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_place(path: str | Path) -> None:
    """UserError if the directory of `path` does not exist; to be called before a long measurement."""
    if not Path(path).absolute().parent.is_dir():
        raise UserError(f"{path}: its directory does not exist")
