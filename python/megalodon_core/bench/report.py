"""The bench as a person meets it: a table, and JSON where asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from megalodon_core import runtime
from megalodon_core.bench.comparisons import COMPARISONS, FULL, QUICK
from megalodon_core.bench.harness import Row, Timing, measure
from megalodon_core.display import Display
from megalodon_core.errors import UserError
from megalodon_core.training.run_directory import write_json


def run_bench(
    console: Console,
    *,
    operators: Sequence[str] | None = None,
    quick: bool = False,
    seconds: float = 2.0,
    json_path: str | Path | None = None,
) -> list[Row]:
    """Measure the named operators (default: all), about `seconds` a timing; print a table, write JSON."""
    known = sorted({comparison.operator for comparison in COMPARISONS})
    for name in operators or ():
        if name not in known:
            raise UserError(f"{name}: no such operator; there are {', '.join(known)}")
    chosen = [row for row in COMPARISONS if operators is None or row.operator in operators]
    size = QUICK if quick else FULL
    rows: list[Row] = []
    with Display("bench", len(chosen), "rows") as display:
        for comparison in chosen:
            rows.append(measure(comparison, size, seconds))
            display.update(len(rows), comparison.operator)
    console.print(table(rows))
    letters = "B=1 H=1 L={length} D={dim} N={ndim} G={groups} Dz={z_dim} Dv={value_dim} c={chunk_size}"
    console.print(f"{letters.format(**asdict(size))}, float32, torch {torch.__version__}")
    console.print(f"{torch.get_num_threads()} threads, {runtime.isa()}; medians of alternating runs")
    console.print("all results and gradients were compared before they were timed")
    if json_path is not None:
        circumstances = {
            "dtype": "float32",
            "threads": torch.get_num_threads(),
            "instruction_set": runtime.isa(),
            "torch": str(torch.__version__),
        }
        write_json(
            Path(json_path), {**circumstances, "size": asdict(size), "rows": [asdict(row) for row in rows]}
        )
        console.print(f"figures: {json_path}")
    return rows


def table(rows: Sequence[Row]) -> Table:
    """One line per row: milliseconds of the operator and of its peer, and their ratio."""
    result = Table(
        title="milliseconds of each operator beside plain PyTorch", box=SIMPLE_HEAD, padding=(0, 1)
    )
    result.add_column("operator", no_wrap=True)
    result.add_column("peer", no_wrap=True)
    for heading in ("forward", "peer", "ratio", "fwd+bwd", "peer", "ratio"):
        result.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        result.add_row(row.operator, row.peer, *_cells(row.forward), *_cells(row.forward_backward))
    return result


def _cells(timing: Timing | None) -> tuple[str, str, str]:
    if timing is None:
        return "-", "-", "-"
    return f"{timing.ours * 1e3:.2f}", f"{timing.peer * 1e3:.2f}", f"{timing.ratio:.1f}x"
