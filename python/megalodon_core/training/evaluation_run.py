"""An evaluation as a person meets it: progress, then a table, and JSON and a picture where asked."""

from __future__ import annotations

from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from megalodon_core.display import Display
from megalodon_core.errors import UserError
from megalodon_core.files import check_place, write_json
from megalodon_core.model import Megalodon
from megalodon_core.training.data import Corpus, held_out_stream
from megalodon_core.training.evaluation import PIECE, Evaluation, evaluate
from megalodon_core.training.plots import plot_evaluation, short_count
from megalodon_core.training.run import Plan

_MEBIBYTE = 2**20


def run_evaluation(
    console: Console,
    model: Megalodon,
    corpus: Corpus,
    length: int,
    *,
    piece: int = PIECE,
    compare: bool = False,
    json_path: str | Path | None = None,
    plot_path: str | Path | None = None,
    plan: Plan | None = None,
) -> Evaluation:
    """Predict `length` values of the corpus's held-out stream and report on it everywhere asked."""
    if corpus.vocab_size > model.config.vocab_size:
        raise UserError(
            f"{corpus.name}: vocabulary of {corpus.vocab_size}, but the model's is {model.config.vocab_size}"
        )
    for path in (json_path, plot_path):
        if path is not None:
            check_place(path)
    stream = held_out_stream(corpus, length)
    with Display("read", length, f"{corpus.unit}s") as display:
        evaluation = evaluate(model, stream, piece=piece, compare=compare, progress=display.update)
    console.print(table(evaluation, corpus.unit))
    console.print(
        f"{evaluation.length:,} {corpus.unit}s in {evaluation.seconds:.1f} s "
        f"({evaluation.tokens_per_second:,.0f} {corpus.unit}s/s), "
        f"carried state {evaluation.state_bytes / _MEBIBYTE:.2f} MiB throughout"
    )
    if compare:
        console.print(f"no memory: the state emptied every {piece:,} {corpus.unit}s")
    if json_path is not None:
        write_json(
            Path(json_path),
            {"data": corpus.name, "unit": corpus.unit, "piece": piece, **evaluation.to_dict()},
        )
        console.print(f"figures: {json_path}")
    if plot_path is not None:
        plot_evaluation(
            evaluation,
            Path(plot_path),
            unit=corpus.unit,
            title=f"{evaluation.length:,} {corpus.unit}s of {corpus.name}",
            segment_length=plan.training.segment_length if plan is not None else None,
        )
        console.print(f"picture: {plot_path}")
    return evaluation


def table(evaluation: Evaluation, unit: str) -> Table:
    """One row per mark: bits inside the bucket that ends there, bits from the start, and memory then."""
    result = Table(title=f"bits per {unit} by position in the stream", box=SIMPLE_HEAD, padding=(0, 1))
    headings = ["up to", "inside the bucket", "from the start", "resident MiB", "peak MiB"]
    if evaluation.marks[0].bits_inside_afresh is not None:
        headings.insert(2, "same, no memory")
    for heading in headings:
        result.add_column(heading, justify="right")
    for mark in evaluation.marks:
        resident = "-" if mark.resident_bytes is None else f"{mark.resident_bytes / _MEBIBYTE:.1f}"
        result.add_row(
            short_count(mark.position),
            f"{mark.bits_inside:.4f}",
            *([] if mark.bits_inside_afresh is None else [f"{mark.bits_inside_afresh:.4f}"]),
            f"{mark.bits_so_far:.4f}",
            resident,
            f"{mark.peak_bytes / _MEBIBYTE:.1f}",
        )
    return result
