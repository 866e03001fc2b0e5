"""Corpora: a training stream and a held-out stream of tokens, from text files or from token files.

Text is read as bytes, so its vocabulary is the 256 byte values, and every document ends with `DOCUMENT_END`.
Token files hold integers below a vocabulary size that the caller names:

* `.npy`: a one-dimensional integer array, as `numpy.save` writes it;
* `.bin`: raw little-endian `uint16` or `uint32` values, without a header.

Files are dealt to the two streams by a hash of their relative path, so a file's side depends on its name
alone: adding, removing or editing other files moves nothing, and every machine agrees.
"""

from __future__ import annotations

import sysconfig
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from megalodon_core.errors import UserError

HELD_OUT_SHARE = 6
"""One file in this many is held out; of a single file, the last part in this many."""

DOCUMENT_END = 0
"""The byte after every text document; it does not occur in ordinary text."""

BYTE_VALUES = 256
"""The vocabulary size of text."""

TOKEN_SUFFIXES = (".npy", ".bin")
_TOKEN_DTYPES = {"uint16": "<u2", "uint32": "<u4"}


@dataclass(frozen=True)
class DataSource:
    """Where a corpus comes from; plain data, so that a run can write it down and find the same text again.

    `paths` are files or directories of text, or token files; none at all means the Python standard library's
    own sources. `held_out` names the held-out files outright instead of splitting `paths`.
    `vocab_size` belongs to token files only, `token_dtype` (uint16 or uint32) to `.bin` files only.
    """

    paths: tuple[str, ...] = ()
    held_out: tuple[str, ...] = ()
    vocab_size: int | None = None
    token_dtype: str = "uint16"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> DataSource:
        return cls(**{**values, "paths": tuple(values["paths"]), "held_out": tuple(values["held_out"])})


@dataclass(frozen=True)
class Corpus:
    """`train` and `held_out` are 1-D unsigned integer arrays; `unit` is "byte" or "token"."""

    name: str
    train: np.ndarray
    held_out: np.ndarray
    vocab_size: int
    unit: str


def is_held_out(relative_path: str) -> bool:
    """Whether the file of this relative path (with forward slashes) belongs to the held-out stream."""
    return int.from_bytes(_digest(relative_path)[:8], "big") % HELD_OUT_SHARE == 0


def load(source: DataSource) -> Corpus:
    """Read a corpus; UserError if a file is missing, empty or malformed, or a stream would be empty."""
    if not source.paths:
        return standard_library()
    files = _named_files(source.paths)
    if source.held_out:
        held_out = _named_files(source.held_out)
    elif len(files) > 1:
        held_out = [(name, path) for name, path in files if is_held_out(name)]
        files = [(name, path) for name, path in files if not is_held_out(name)]
    else:
        held_out = []
    name = ", ".join(source.paths)
    if not files:
        raise UserError(
            f"{name}: the split by path left no file to train on; name them with --data and --held-out"
        )
    train, vocab_size, unit = _read(files, source)
    if held_out:
        held, _, held_unit = _read(held_out, source)
        if held_unit != unit:
            raise UserError("--data and --held-out must both be text or both be token files")
    elif len(files) == 1:
        cut = len(train) - len(train) // HELD_OUT_SHARE
        train, held = train[:cut], train[cut:]
    else:
        raise UserError(f"{name}: the split by path left no file held out; name one with --held-out")
    if len(held) < 2:
        raise UserError(
            f"{name}: {len(held)} {unit} held out is too little to predict anything; give more text"
        )
    return Corpus(name, train, held, vocab_size, unit)


def whole(source: DataSource) -> Corpus:
    """The files of `source.paths` as one held-out stream, nothing of them split off for training."""
    tokens, vocab_size, unit = _read(_named_files(source.paths), source)
    return Corpus(", ".join(source.paths), tokens[:0], tokens, vocab_size, unit)


def suffixes(source: DataSource) -> set[str]:
    """The endings of all files that `source` names."""
    return {path.suffix for _, path in _named_files((*source.paths, *source.held_out))}


def standard_library(root: str | Path | None = None) -> Corpus:
    """The Python standard library's own `*.py` files as a byte corpus, installed packages left out.

    Documents stand in the order of their path's hash, which mixes packages evenly along the stream: a bucket
    of positions then differs from the next in its place and not in its subject.
    """
    base = Path(root if root is not None else sysconfig.get_path("stdlib"))
    excluded = {"site-packages", "dist-packages"}
    names = [path.relative_to(base) for path in base.rglob("*.py") if path.is_file()]
    files = [(name.as_posix(), base / name) for name in names if excluded.isdisjoint(name.parts)]
    files.sort(key=lambda file: _digest(file[0]))
    train = _join_documents([path for name, path in files if not is_held_out(name)])
    held_out = _join_documents([path for name, path in files if is_held_out(name)])
    if not len(train) or not len(held_out):
        raise UserError(
            f"{base}: this Python ships too few sources to train on; name text of your own with --data"
        )
    return Corpus("the Python standard library", train, held_out, BYTE_VALUES, "byte")


def held_out_stream(corpus: Corpus, length: int) -> np.ndarray:
    """The first `length + 1` values of the held-out stream; UserError if there are fewer."""
    if len(corpus.held_out) <= length:
        raise UserError(
            f"{corpus.name}: held-out stream of {len(corpus.held_out):,} {corpus.unit}s is too short to "
            f"predict {length:,}; give more text with --data or ask for fewer {corpus.unit}s"
        )
    return corpus.held_out[: length + 1]


def _digest(relative_path: str) -> bytes:
    return blake2b(relative_path.encode("utf-8", "surrogateescape"), digest_size=16).digest()


def _named_files(paths: Sequence[str]) -> list[tuple[str, Path]]:
    """(relative name, path) of every file named, or found and not hidden, in a fixed order."""
    files: list[tuple[str, Path]] = []
    for text in paths:
        path = Path(text)
        if path.is_dir():
            names = sorted(found.relative_to(path) for found in path.rglob("*") if found.is_file())
            visible = [name for name in names if not any(part.startswith(".") for part in name.parts)]
            if not visible:
                raise UserError(f"{text}: no file in this directory")
            files += [(name.as_posix(), path / name) for name in visible]
        elif path.is_file():
            if path.stat().st_size == 0:
                raise UserError(f"{text}: the file is empty")
            files.append((path.name, path))
        else:
            raise UserError(f"{text}: no such file or directory")
    return files


def _read(files: Sequence[tuple[str, Path]], source: DataSource) -> tuple[np.ndarray, int, str]:
    """(values, vocabulary size, unit) of files that must all be text or all be token files."""
    kinds = {path.suffix in TOKEN_SUFFIXES for _, path in files}
    if kinds == {True, False}:
        raise UserError("text files and token files (.npy, .bin) cannot be mixed in one corpus")
    if kinds == {False}:
        text = _join_documents([path for _, path in files])
        if not len(text):
            raise UserError(f"{', '.join(source.paths)}: every file is empty")
        return text, BYTE_VALUES, "byte"
    if source.vocab_size is None:
        raise UserError("token files need --vocab-size")
    arrays = [_read_tokens(path, source.vocab_size, source.token_dtype) for _, path in files]
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays), source.vocab_size, "token"


def _join_documents(paths: Sequence[Path]) -> np.ndarray:
    """The bytes of the non-empty files in the order given, `DOCUMENT_END` after each."""
    contents = (path.read_bytes() for path in paths)
    joined = b"".join(content + bytes([DOCUMENT_END]) for content in contents if content)
    return np.frombuffer(joined, np.uint8)


def _read_tokens(path: Path, vocab_size: int, token_dtype: str) -> np.ndarray:
    """A memory map of one token file, after a pass that checks every value against the vocabulary."""
    tokens: np.ndarray
    try:
        if path.suffix == ".npy":
            tokens = np.load(path, mmap_mode="r", allow_pickle=False)
        else:
            tokens = np.memmap(path, dtype=_TOKEN_DTYPES[token_dtype], mode="r")
    except ValueError as error:
        raise UserError(f"{path}: not a readable token file: {error}") from error
    if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
        raise UserError(
            f"{path}: expected a one-dimensional integer array, got {tokens.ndim}-D {tokens.dtype}"
        )
    if not len(tokens):
        raise UserError(f"{path}: the file holds no token")
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= vocab_size:
        raise UserError(f"{path}: token {low if low < 0 else high} is outside the vocabulary of {vocab_size}")
    return tokens
