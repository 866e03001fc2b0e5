"""A run on disk: its settings and a few checkpoints, of which only whole and undamaged ones are seen.

    RUN/run.json                              what the run is made of (written once, when it begins)
    RUN/checkpoints/step-00000400/...         files of one checkpoint, and manifest.json with their SHA-256
    RUN/checkpoints/.writing-step-00000500    a checkpoint being written, or what an interruption left of it

A checkpoint is written under its hidden name, flushed to the disk and renamed, so a step directory either
holds everything or does not exist. The manifest guards against what a rename cannot: bits lost later on.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from megalodon_core.files import flush, read_json, write_json

_MANIFEST = "manifest.json"
_FINAL = "step-"
_WRITING = ".writing-"


class RunDirectory:
    """The run at `path`, which need not exist before the first write."""

    def __init__(self, path: str | Path, keep: int = 2) -> None:
        self.path = Path(path)
        self.keep = keep

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def exists(self) -> bool:
        return (self.path / "run.json").is_file()

    def write_settings(self, settings: dict[str, Any]) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(self.path / "run.json", settings)

    def read_settings(self) -> dict[str, Any]:
        return read_json(self.path / "run.json")

    def save(self, step: int, write: Callable[[Path], None]) -> Path:
        """Let `write` fill a directory, publish it as the checkpoint of `step`, keep only the newest few."""
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        for leftover in self.checkpoints.glob(_WRITING + "*"):
            shutil.rmtree(leftover)
        final = self.checkpoints / f"{_FINAL}{step:08d}"
        writing = self.checkpoints / f"{_WRITING}{final.name}"
        writing.mkdir()
        write(writing)
        files = sorted(path for path in writing.iterdir() if path.is_file())
        write_json(writing / _MANIFEST, {path.name: _sha256(path) for path in files})
        for path in files:
            flush(path)
        flush(writing)
        if final.exists():
            shutil.rmtree(final)
        os.replace(writing, final)
        flush(self.checkpoints)
        for old in list(self._newest_first())[self.keep :]:
            shutil.rmtree(old)
        return final

    def newest(self, report: Callable[[str], None]) -> Path | None:
        """The newest complete checkpoint, or None; every damaged one passed over is named to `report`."""
        for path in self._newest_first():
            damage = _damage(path)
            if damage is None:
                return path
            report(f"{path}: {damage}; this checkpoint is not used")
        return None

    def _newest_first(self) -> Iterator[Path]:
        return iter(sorted(self.checkpoints.glob(_FINAL + "*"), reverse=True))


def _damage(path: Path) -> str | None:
    """What is wrong with a checkpoint directory, or None."""
    try:
        manifest = read_json(path / _MANIFEST)
    except FileNotFoundError:
        return f"{_MANIFEST} is missing"
    except ValueError as error:
        return str(error)
    for name, digest in manifest.items():
        if not (path / name).is_file():
            return f"{name} is missing"
        if _sha256(path / name) != digest:
            return f"{name} does not match its checksum"
    return None


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
