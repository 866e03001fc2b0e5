"""The benchmark of a GPU: every operator, the 7B model's layer beside LLaMA's, decoding, and which bars hold.

    python tests/benchmarks/run_cuda.py --output build/bench-cuda [--sections operators layer ...]

Writes figures.json and floor.png to the output directory. Every ratio is of times taken in turn in this run,
and nothing is timed before its results agreed with plain PyTorch. `--device cpu --small` runs the same code
anywhere.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

import bars
import layers
import other_peers
import plots
import sdpa
import torch
from megalodon_core import cuda
from megalodon_core.bench import ceilings, harness, report
from megalodon_core.bench.operators import CASES, Case, Size, moves
from megalodon_core.bench.timing import Sample, interleave, stopwatch
from megalodon_core.display import output_console
from megalodon_core.files import write_json
from rich.console import Console
from run import operators
from views import View

REPOSITORY = Path(__file__).parents[2]
DTYPE = torch.bfloat16


@dataclass(frozen=True)
class Scale:
    """The shapes of a run: the operators', a long sequence's, one to compare at in its place, the layer's."""

    size: Size
    long: Size
    compared: Size
    widths: layers.Widths


BATCH = Size(
    length=4096, dim=4096, ndim=16, groups=64, z_dim=256, value_dim=2048, chunk_size=4096, batch=8, heads=4
)
LITTLE = Size(length=64, dim=32, ndim=4, groups=4, z_dim=16, value_dim=32, chunk_size=32, batch=2, heads=2)
FULL = Scale(BATCH, replace(BATCH, batch=1, length=32768), replace(BATCH, batch=1, length=8192), layers.FULL)
SMALL = Scale(LITTLE, replace(LITTLE, batch=1, length=128), replace(LITTLE, batch=1), layers.SMALL)

# Where each operator stands against copies alone: on a GPU its arithmetic is to hide behind its memory.
_MOVES = {"cema": moves(2, 3), "ema": moves(2, 3)}
GPU_CASES = [
    replace(case, floor=_MOVES.get(case.operator, case.floor)) for case in CASES if any(case.activations)
]
SEQUENCE = ("cema", "timestep_norm", "normalized_attention")
LONG_CASES = [case for case in GPU_CASES if case.operator in SEQUENCE and not case.note]


def machine() -> dict[str, float]:
    """`ceiling.*`: Tflop/s of the matrix product, GB/s a copy reads and writes, microseconds of a launch."""
    product = ceilings.gemm(DTYPE, gemm=1e12)
    elements = BATCH.batch * BATCH.length * BATCH.dim if _on_gpu() else 2**20
    (copy,) = ceilings.copy(DTYPE, copy=2 * elements)
    one = torch.zeros(1)
    samples = {"gemm": product, "copy": copy, "launch": stopwatch("launch", lambda: one.add_(1), 100)}
    samples["round_trip"] = _round_trip(one)
    for sample in samples.values():
        sample()
    found = {name: median(parts[name]) for name, parts in interleave(samples, 2.0).items()}
    return {
        "ceiling.tflops": 1 / found["gemm"],
        "ceiling.gigabytes_per_second": 2 * elements * DTYPE.itemsize / found["copy"] / 1e9,
        "ceiling.launch_us": 1e6 * found["launch"],
        "ceiling.round_trip_us": 1e6 * found["round_trip"],
    }


def _round_trip(one: torch.Tensor) -> Sample:
    """A launch and the wait for it, on the clock of the host."""

    def sample() -> dict[str, float]:
        begin = time.perf_counter()
        one.add_(1).item()
        return {"round_trip": time.perf_counter() - begin}

    return sample


def _on_gpu() -> bool:
    return torch.get_default_device().type == "cuda"


class Run:
    """One run: what it has measured so far, which is written as it goes, and where that is shown."""

    def __init__(self, arguments: argparse.Namespace, peers: dict[str, harness.MakeSide], console: Console):
        self.scale = SMALL if arguments.small else FULL
        self.seconds, self.output = arguments.seconds, arguments.output
        self.peers, self.console, self.facts = peers, console, circumstances()
        self.rows: list[harness.Row] = []
        self.complaints: list[str] = []
        self.failed = False
        self.figures = machine()

    def save(self) -> list[bars.Verdict]:
        """Writes figures.json, so that a run that is cut short leaves what it had."""
        verdicts = bars.judge(self.figures, bars.GPU_BARS)
        content = {
            **self.facts,
            "size": asdict(self.scale.size),
            "rows": [report.row_dict(row) for row in self.rows],
            "figures": self.figures,
            "bars": [{**v.bar._asdict(), "figures": v.figures, "holds": v.holds} for v in verdicts],
            "complaints": self.complaints,
        }
        write_json(self.output / "figures.json", content)
        return verdicts

    def operators(self) -> None:
        for rows in self._measured(GPU_CASES, self.scale.size, self.peers):
            self.rows += rows
            self.figures |= operators(rows)
            self.save()
        self.console.print(report.table(self.rows, self.scale.size))
        plots.share_of_floor(self.rows, self.output / "floor.png", str(self.facts["device"]))

    def long(self) -> None:
        """One sequence, where plain PyTorch has no room: compared at a shorter one, timed without peers."""
        found: list[harness.Row] = []
        for rows in self._measured(LONG_CASES, self.scale.long, {}, self.scale.compared):
            found += rows
            self.figures |= operators(rows, "long")
        self.console.print(report.table(found, self.scale.long))

    def _measured(
        self,
        cases: list[Case],
        size: Size,
        peers: dict[str, harness.MakeSide],
        compared: Size | None = None,
    ) -> Iterator[list[harness.Row]]:
        for case in cases:
            rows = self._rows(case, size, peers, compared)
            shown = (f"{row.direction} {1e3 * row.seconds:.3g} ms, {row.share:.2f} of floor" for row in rows)
            print(f"{case.name}: {'; '.join(shown)}", file=sys.stderr, flush=True)
            yield rows
            forget()

    def _rows(
        self, case: Case, size: Size, peers: dict[str, harness.MakeSide], compared: Size | None
    ) -> list[harness.Row]:
        """A peer that is wrong is left out; nothing where the operator is, or where there is no room."""
        try:
            return harness.measure(case, size, [DTYPE], self.seconds, peers, compared)
        except torch.OutOfMemoryError as error:
            self.complain(error, True)
            return []
        except harness.DisagreementError as error:
            self.complain(error, error.side not in peers)
            if error.side not in peers:
                return []
            right = {name: make for name, make in peers.items() if name != error.side}
        return self._rows(case, size, right, compared)

    def complain(self, error: Exception, fatal: bool) -> None:
        """Notes that something was not timed; `fatal` if it is something of ours."""
        self.complaints.append(str(error))
        self.failed |= fatal
        print(error, file=sys.stderr, flush=True)

    def layer(self) -> None:
        self.figures |= layers.measure(self.scale.widths, self.seconds)

    def decode(self) -> None:
        self.figures |= layers.decoding(self.scale.widths, self.seconds)


SECTIONS: dict[str, Callable[[Run], None]] = {
    "operators": Run.operators,
    "long": Run.long,
    "layer": Run.layer,
    "decode": Run.decode,
}


def forget() -> None:
    """Gives back what the last case held: graphs of torch.compile live in cycles."""
    gc.collect()
    if _on_gpu():
        torch.cuda.empty_cache()


def views(widths: layers.Widths) -> list[View]:
    who = ("megalodon", *(f"llama_{name}" for name in sdpa.BACKENDS))
    lengths = [length for _, length in widths.contexts]
    return [
        View(
            "the machine: Tflop/s of a matrix product, GB/s of a copy, microseconds of a launch and a wait",
            ("ceiling",),
            (
                ("product", "{}.tflops"),
                ("copy", "{}.gigabytes_per_second"),
                ("launch", "{}.launch_us"),
                ("round trip", "{}.round_trip_us"),
            ),
        ),
        View(
            "one layer, forward + backward: seconds, tokens/s, bytes of activations",
            tuple(f"layer.{length}.{name}" for length in lengths for name in who),
            (("s", "{}.both"), ("tokens/s", "{}.tokens_per_second"), ("bytes", "{}.bytes")),
        ),
        View(
            "one token in a layer: seconds, those of reading its weights, and the ratio",
            ("decode.start", "decode.half_chunk"),
            (("s", "{}.seconds"), ("reading", "{}.read_seconds"), ("ratio", "{}.over_read")),
        ),
    ]


def circumstances() -> dict[str, object]:
    """What the figures depend on besides the code."""
    facts = report.circumstances() | {
        "date": str(datetime.date.today()),
        "device": torch.cuda.get_device_name() if _on_gpu() else "cpu",
        "cuda": cuda.status(),
    }
    commands = {
        "driver": ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "commit": ("git", "-C", str(REPOSITORY), "rev-parse", "--short", "HEAD"),
    }
    for name, command in commands.items():
        if shutil.which(command[0]):
            finished = subprocess.run(command, capture_output=True, text=True, check=False)
            facts[name] = finished.stdout.strip()
    if "MEGALODON_COMMIT" in os.environ:  # for a copy of the tree without its history
        facts["commit"] = os.environ["MEGALODON_COMMIT"]
    return facts


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("build/bench-cuda"))
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--seconds", type=float, default=2.0, help="spent on timing each operator")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--small", action="store_true", help="tiny shapes, to see that everything runs")
    parser.add_argument("--peers", nargs="*", help="which peers, of those that can run; default all")
    arguments = parser.parse_args()
    if arguments.device == "cuda":
        try:
            cuda.devices()
        except RuntimeError as error:
            raise SystemExit(f"no benchmark of a GPU: {error}") from None
    return arguments


def main() -> int:
    arguments = parsed()
    torch.set_default_device(arguments.device)
    arguments.output.mkdir(parents=True, exist_ok=True)
    console, begin = output_console(), time.perf_counter()
    others, absent = other_peers.available()
    others = {name: sdpa.that_fits(make) for name, make in others.items()}
    peers = {"eager": harness.eager, **others, **{n: sdpa.side_of(b) for n, b in sdpa.BACKENDS.items()}}
    peers = {name: make for name, make in peers.items() if arguments.peers is None or name in arguments.peers}
    run = Run(arguments, peers, console)
    for name in arguments.sections:
        print(f"{name} at {time.perf_counter() - begin:.0f} s", file=sys.stderr, flush=True)
        try:
            SECTIONS[name](run)
        except (harness.DisagreementError, torch.OutOfMemoryError) as error:
            run.complain(error, True)
        run.save()
        forget()
    console.print(report.EXPLANATION)
    for line in (*absent, *run.complaints):
        console.print(line, markup=False)
    for view in views(run.scale.widths):
        table = view.table(run.figures)
        if table is not None:
            console.print(view.title, table, sep="\n")
    console.print(bars.table(run.save()))
    console.print(", ".join(f"{name} {value}" for name, value in run.facts.items()), markup=False)
    console.print(f"figures: {arguments.output}; {time.perf_counter() - begin:.0f} seconds in all")
    return 1 if run.failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
