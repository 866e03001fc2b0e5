"""The bench of operators as a person meets it: a table, and JSON where asked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from megalodon_core import runtime
from megalodon_core.bench.harness import MakeSide, Row, measure
from megalodon_core.bench.operators import CASES, FULL, QUICK, Case, Size
from megalodon_core.display import Display
from megalodon_core.errors import UserError
from megalodon_core.files import check_place, write_json

_SHORT = {"float32": "f32", "bfloat16": "bf16", "forward": "fwd", "backward": "bwd", "both": "both"}


def run_bench(
    console: Console,
    *,
    operators: Sequence[str] | None = None,
    quick: bool = False,
    seconds: float = 2.0,
    json_path: str | Path | None = None,
) -> list[Row]:
    """Measure the named operators (default: all), about `seconds` each; print a table, write JSON."""
    known = sorted({case.operator for case in CASES})
    for name in operators or ():
        if name not in known:
            raise UserError(f"{name}: no such operator; there are {', '.join(known)}")
    if json_path is not None:
        check_place(json_path)
    chosen = [case for case in CASES if operators is None or case.operator in operators]
    size = QUICK if quick else FULL
    rows = measure_all(chosen, size, (torch.float32,), seconds)
    console.print(table(rows, size))
    console.print(EXPLANATION)
    console.print(circumstances_line())
    if json_path is not None:
        content = {**circumstances(), "size": asdict(size), "rows": [row_dict(row) for row in rows]}
        write_json(Path(json_path), content)
        console.print(f"figures: {json_path}")
    return rows


def measure_all(
    cases: Sequence[Case],
    size: Size,
    dtypes: Sequence[torch.dtype],
    seconds: float,
    peers: Mapping[str, MakeSide] | None = None,
) -> list[Row]:
    """`measure` of every case, with a progress display."""
    rows: list[Row] = []
    with Display("bench", len(cases), "operators") as display:
        for done, case in enumerate(cases):
            display.update(done, case.name)
            rows += measure(case, size, dtypes, seconds, peers)
        display.update(len(cases), "")
    return rows


def circumstances() -> dict[str, object]:
    """What a time depends on besides the code."""
    return {
        "threads": torch.get_num_threads(),
        "instruction_set": runtime.isa(),
        "torch": str(torch.__version__),
    }


def circumstances_line() -> str:
    return f"{torch.get_num_threads()} threads, {runtime.isa()}, torch {torch.__version__}"


EXPLANATION = """\
ms: median of runs taken in turn with floor and peers; floor: the copy of the tensors that must
move, or the operations at the rate of torch's matrix product; share: floor / ms; in brackets how
many times as long the peer takes. Backward is timed inside both, from the return of forward. All
results and gradients were compared with plain PyTorch, in float64 at a tiny shape and at this one,
before they were timed."""


def row_dict(row: Row) -> dict[str, object]:
    ratios = {peer: row.ratio(peer) for peer in row.peers}
    return {**asdict(row), "share": row.share, "ratios": ratios}


def table(rows: Sequence[Row], size: Size) -> Table:
    """One line per operator, type and direction: milliseconds, floor, share, and each peer."""
    result = Table(title=f"operators, {size.letters}", box=SIMPLE_HEAD, padding=(0, 1))
    peers = list(dict.fromkeys(peer for row in rows for peer in row.peers))
    result.add_column("operator", no_wrap=True)
    for heading in ("type", "pass"):
        result.add_column(heading, no_wrap=True)
    for heading in ("ms", "floor", "share", *peers):
        result.add_column(heading, justify="right", no_wrap=True)
    before = ("", "")
    for row in rows:
        here = (row.case, _SHORT[row.dtype])
        if row.case != before[0] and before[0]:
            result.add_section()
        result.add_row(
            "" if row.case == before[0] else row.case,
            "" if here == before else here[1],
            _SHORT[row.direction],
            *_cells(row, peers),
        )
        before = here
    return result


def _cells(row: Row, peers: Iterable[str]) -> list[str]:
    beside = [
        f"{milliseconds(row.peers[peer])} ({times(row.ratio(peer))})" if peer in row.peers else "-"
        for peer in peers
    ]
    return [milliseconds(row.seconds), milliseconds(row.floor), f"{row.share:.2f}", *beside]


def milliseconds(seconds: float) -> str:
    """Three significant digits or so: 0.0123, 1.23, 123."""
    value = seconds * 1e3
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}" if value < 1 else f"{value:.2f}"


def times(ratio: float) -> str:
    """Two significant digits or so: 0.82x, 5.4x, 74x."""
    return f"{ratio:.0f}x" if ratio >= 10 else f"{ratio:.1f}x" if ratio >= 1 else f"{ratio:.2f}x"
