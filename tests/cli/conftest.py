"""A little text, a little model, and the program run in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from megalodon_core.cli import main

TINY = [
    *("--layers", "2", "--dim", "16", "--chunk-size", "8"),
    *("--batch-size", "2", "--segment-length", "12", "--carry", "3", "--checkpoint-every", "4"),
    *("--precision", "float32"),
]


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def program(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """`program("eval", "DIR", ...)` -> exit code, stdout and stderr of that command."""

    def run(*arguments: object) -> Outcome:
        capsys.readouterr()
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def tiny() -> list[str]:
    """Options of `train` for a tiny model, tiny steps and a checkpoint every 4 of them."""
    return TINY


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text file of 6,000 bytes; its last 1,000 are held out."""
    path = tmp_path_factory.mktemp("text") / "numbers.txt"
    path.write_text("".join(f"{n} squared is {n * n}\n" for n in range(400))[:5999], encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def trained(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 10 steps on `text`."""
    run = tmp_path_factory.mktemp("runs") / "finished"
    assert main(["train", "--run", str(run), "--data", str(text), "--steps", "10", *TINY]) == 0
    return run
