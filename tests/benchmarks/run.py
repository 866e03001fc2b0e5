"""The whole benchmark: every operator, the model, memory, decoding and scaling, and which bars hold.

    python tests/benchmarks/run.py --output build/bench [--sections operators model ...]

Writes figures.json, length.png and floor.png to the output directory. Every ratio is of times taken in turn
in this run. `pytest tests/benchmarks --benchmark-only` times the operators alone, under pytest-benchmark.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import median

import bars
import decoding
import models
import other_peers
import plots
import scaling
import torch
from megalodon_core import runtime
from megalodon_core.bench import ceilings, harness, report
from megalodon_core.bench.operators import CASES, FULL
from megalodon_core.bench.timing import Sample, interleave
from megalodon_core.display import output_console
from megalodon_core.files import write_json
from views import VIEWS

THREADS = 2
DTYPES = (torch.float32, torch.bfloat16)


def machine() -> dict[str, float]:
    """`ceiling.<dtype>.*`: the GEMM rate in Gop/s; GB/s that copies of n tensors (L, D) read and write."""
    samples = {}
    tensor = FULL.length * FULL.dim
    for dtype in DTYPES:
        name = str(dtype).removeprefix("torch.")
        samples[name, "gemm"] = ceilings.gemm(dtype, gemm=1e9)
        for count in (2, 3, 8):
            (samples[name, f"copy_{count}"],) = ceilings.copy(dtype, copy=count * tensor)
        (samples[name, "clone_2"],) = ceilings.clone(dtype, clone=2 * tensor)
        samples[name, "one_thread_copy_2"] = with_one_thread(samples[name, "copy_2"])
    for sample in samples.values():
        sample()
    figures = {}
    for (name, what), parts in interleave(samples, 4.0).items():
        (times,) = parts.values()
        done = 1.0 if what == "gemm" else tensor * int(what[-1]) * getattr(torch, name).itemsize / 1e9
        figures[f"ceiling.{name}.{what}"] = done / median(times)
    return figures


def with_one_thread(sample: Sample) -> Sample:
    def run() -> dict[str, float]:
        torch.set_num_threads(1)
        taken = sample()
        torch.set_num_threads(THREADS)
        return taken

    return run


def operators(rows: Sequence[harness.Row], section: str = "operator") -> dict[str, float]:
    """`operator.<case>.<dtype>.<direction>.<quantity>` of the rows."""
    figures: dict[str, float] = {}
    seconds = {(row.case, row.dtype, row.direction): row.seconds for row in rows}
    least = {(row.case, row.dtype): row.floor for row in rows if row.direction == "forward"}
    for row in rows:
        name = f"{section}.{row.case}.{row.dtype}.{row.direction}"
        figures[f"{name}.seconds"] = row.seconds
        figures[f"{name}.share"] = row.share
        figures[f"{name}.over_floor"] = 1 / row.share
        figures[f"{name}.over_forward"] = row.seconds / seconds[row.case, row.dtype, "forward"]
        figures[f"{name}.over_forward_floor"] = row.seconds / least[row.case, row.dtype]
        if (row.case, "float32", row.direction) in seconds:
            figures[f"{name}.over_float32"] = row.seconds / seconds[row.case, "float32", row.direction]
        figures |= {f"{name}.{peer}": row.ratio(peer) for peer in row.peers}
        if row.peers:
            figures[f"{name}.best_peer"] = min(row.ratio(peer) for peer in row.peers)
    return figures


SECTIONS: dict[str, Callable[[], dict[str, float]]] = {
    "model": models.measure,
    "decoding": lambda: decoding.measure(4.0),
    "lengths": partial(scaling.in_kept_memory, "lengths"),
    "stream": scaling.stream,
    "threads": partial(scaling.in_kept_memory, "threads"),
    "isa": scaling.instruction_sets,
    "little": scaling.little,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("build/bench"))
    parser.add_argument(
        "--sections", nargs="+", choices=["operators", *SECTIONS], default=["operators", *SECTIONS]
    )
    parser.add_argument("--seconds", type=float, default=2.5, help="spent on timing each operator")
    arguments = parser.parse_args()
    torch.set_num_threads(THREADS)
    arguments.output.mkdir(parents=True, exist_ok=True)
    console = output_console()
    begin = time.perf_counter()
    rows: list[harness.Row] = []
    figures = machine()
    if "operators" in arguments.sections:
        others, absent = other_peers.available()
        rows = report.measure_all(CASES, FULL, DTYPES, arguments.seconds, {"eager": harness.eager, **others})
        figures |= operators(rows)
        console.print(report.table(rows, FULL))
        console.print(report.EXPLANATION)
        for line in absent:
            console.print(line, markup=False)
    for name in arguments.sections:
        if name in SECTIONS:
            print(f"{name} at {time.perf_counter() - begin:.0f} s", file=sys.stderr, flush=True)
            figures |= SECTIONS[name]()
    verdicts = bars.judge(figures, bars.BARS, runtime.isa())
    for view in VIEWS:
        view_table = view.table(figures)
        if view_table is not None:
            console.print(view.title, view_table, sep="\n")
    console.print(bars.table(verdicts))
    where = f"{report.circumstances_line()}"
    console.print(f"{where}; {time.perf_counter() - begin:.0f} seconds in all")
    write_json(
        arguments.output / "figures.json",
        {
            **report.circumstances(),
            "size": asdict(FULL),
            "rows": [report.row_dict(row) for row in rows],
            "figures": figures,
            "bars": [{**v.bar._asdict(), "figures": v.figures, "holds": v.holds} for v in verdicts],
        },
    )
    if rows:
        plots.share_of_floor(rows, arguments.output / "floor.png", where)
    if "lengths" in arguments.sections and "stream" in arguments.sections:
        plots.time_against_length(figures, arguments.output / "length.png", where)
    console.print(f"figures and plots: {arguments.output}")


if __name__ == "__main__":
    main()
