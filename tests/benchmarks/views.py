"""The figures of a run as tables: which figures stand in which row and column, as data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import models
import scaling
from megalodon_core.training.plots import short_count
from rich.box import SIMPLE_HEAD
from rich.table import Table


class View(NamedTuple):
    """A table whose cell is the figure `column.format(row)`."""

    title: str
    rows: tuple[str, ...]
    columns: tuple[tuple[str, str], ...]

    def table(self, figures: Mapping[str, float]) -> Table | None:
        """None where nothing in it was measured."""
        result = Table(box=SIMPLE_HEAD, padding=(0, 1))
        result.add_column("", no_wrap=True)
        for heading, _ in self.columns:
            result.add_column(heading, justify="right", no_wrap=True)
        cells = {row: [figures.get(name.format(row)) for _, name in self.columns] for row in self.rows}
        for row, values in cells.items():
            if any(value is not None for value in values):
                shown = ["-" if value is None else f"{value:.3g}" for value in values]
                result.add_row(row.replace(".", " "), *shown)
        return result if result.row_count else None


_OPERATORS = tuple(case.operator for case in scaling.OWN)

VIEWS = (
    View(
        "the machine: Gop/s of the matrix product; GB/s of copies and a clone of n tensors (4096, 1024)",
        ("float32", "bfloat16"),
        (
            ("product", "ceiling.{}.gemm"),
            ("copy 2", "ceiling.{}.copy_2"),
            ("copy 3", "ceiling.{}.copy_3"),
            ("copy 8", "ceiling.{}.copy_8"),
            ("clone 2", "ceiling.{}.clone_2"),
            ("copy 2, one thread", "ceiling.{}.one_thread_copy_2"),
        ),
    ),
    View(
        "2 layers of mega200M's width: share of the GEMM rate; time of a LLaMA of as many parameters over it",
        tuple(f"{kind}.{dtype}.{length}" for kind, dtype in models.ALONE for length in models.LENGTHS),
        (
            ("fwd s", "model.{}.forward.seconds"),
            ("share", "model.{}.forward.share"),
            ("LLaMA", "model.{}.forward.llama"),
            ("both s", "model.{}.both.seconds"),
            ("share", "model.{}.both.share"),
            ("LLaMA", "model.{}.both.llama"),
            ("peak GB", "memory.{}.gigabytes"),
        ),
    ),
    View(
        "one token of mega200M, batch 1, of several in a row; calls: a token of a model of as many layers,\n"
        "16 times as narrow, whose weights lie in cache; sums: torch's sum of each weight matrix",
        ("float32", "bfloat16"),
        (
            ("s", "decode.{}.seconds"),
            ("calls, s", "decode.{}.calls_seconds"),
            ("sums, s", "decode.{}.sums_seconds"),
            ("reading weights, s", "decode.{}.read_seconds"),
            ("ratio", "decode.{}.over_read"),
        ),
    ),
    View(
        "seconds by length, and the time per token at 256K over that at 4K",
        ("clone", *(f"operator.{op}.{part}" for op in _OPERATORS for part in ("forward", "both"))),
        (
            *((short_count(length), f"scaling.{{}}.{length}") for length in scaling.LENGTHS),
            ("growth", "scaling.{}.growth"),
        ),
    ),
    View(
        "the streaming model: seconds to so many tokens; growth: a piece of the last 64K over one of\n"
        "another stream's first 64K, read in turn",
        ("stream",),
        (
            *((short_count(mark), f"scaling.{{}}.{mark}") for mark in scaling.STREAM_MARKS),
            ("growth", "scaling.{}.growth"),
        ),
    ),
    View(
        "one thread's time over two threads', B = 1 and 8; limit: one thread's time over two threads' copy\n"
        "of the tensors, or, where arithmetic bounds, what two gain in torch's matrix product;\n"
        "time of instruction sets over that of the best one of this machine",
        tuple(f"{op}.{part}" for op in _OPERATORS for part in ("forward", "backward")),
        (
            ("B=1", "threads.{}.1"),
            ("limit", "threads.{}.limit"),
            ("B=8", "threads.{}.8"),
            ("avx512", "isa.{}.avx512"),
            ("avx2", "isa.{}.avx2"),
            ("baseline", "isa.{}.baseline"),
        ),
    ),
    View(
        "microseconds of a call with almost no work; plain PyTorch's microseconds at D = 64, L = 128, and\n"
        "its time over ours; recorded: under autograd, both: with backward",
        _OPERATORS,
        (
            ("call us", "overhead.{}.forward"),
            ("recorded", "overhead.{}.recorded"),
            ("PyTorch us", "eager.{}.forward"),
            ("recorded", "eager.{}.recorded"),
            ("both", "eager.{}.both"),
            ("ratio", "small.{}.forward"),
            ("recorded", "small.{}.recorded"),
            ("both", "small.{}.both"),
        ),
    ),
    View(
        "microseconds of torch.empty_like at that size, and of an autograd function of two inputs in Python\n"
        "that does nothing else",
        ("least",),
        (("call us", "{}.forward"), ("recorded", "{}.recorded"), ("both", "{}.both")),
    ),
)
