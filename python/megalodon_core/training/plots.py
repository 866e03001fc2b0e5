"""The picture of an evaluation: bits and memory against the position in the stream."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from megalodon_core.training.evaluation import Evaluation


def plot_evaluation(
    evaluation: Evaluation, path: Path, *, unit: str, title: str, segment_length: int | None = None
) -> None:
    """Write a PNG: above, bits per `unit` by position; below, resident memory. Positions are logarithmic.

    `segment_length`, where known, marks how far training ever propagated a gradient.
    """
    figure = Figure(figsize=(9, 6.5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    pieces, marks = evaluation.pieces, evaluation.marks
    positions = [piece.position for piece in pieces]
    above.plot(
        positions, [piece.bits for piece in pieces], ".", color="0.75", label="each piece", markersize=4
    )
    edges = [max(1, positions[0] // 4), *(mark.position for mark in marks)]  # zero has no place on a log axis

    def steps(bits: list[float], color: str, style: str, label: str) -> None:
        above.stairs(bits, edges, baseline=None, color=color, linestyle=style, linewidth=2, label=label)

    steps([mark.bits_inside for mark in marks], "tab:blue", "-", "inside the bucket")
    afresh = [mark.bits_inside_afresh for mark in marks if mark.bits_inside_afresh is not None]
    if afresh:
        longest = max(piece.length for piece in pieces)
        steps(afresh, "tab:red", ":", f"inside the bucket, state emptied every {longest:,}")
    above.plot(
        edges[1:], [mark.bits_so_far for mark in marks], "o-", color="tab:orange", label="from the start"
    )
    if segment_length is not None:
        above.axvline(
            segment_length, color="0.4", linestyle=":", label=f"trained segment ({segment_length:,})"
        )
    above.set_ylabel(f"bits per {unit}")
    above.set_title(title)
    above.legend(loc="upper right")
    above.grid(alpha=0.3)
    resident = [piece.resident_bytes for piece in pieces]
    below.plot(
        positions,
        [float("nan") if size is None else size / 2**20 for size in resident],
        color="tab:green",
    )
    below.set_ylim(bottom=0)
    below.set_ylabel("resident MiB")
    below.set_xlabel(f"position in the stream, {unit}s")
    below.grid(alpha=0.3)
    below.set_xscale("log", base=2)
    below.xaxis.set_major_locator(FixedLocator(edges[1:]))
    below.xaxis.set_minor_locator(NullLocator())
    below.xaxis.set_major_formatter(FuncFormatter(lambda position, _: short_count(round(position))))
    figure.savefig(path, dpi=120)


def short_count(count: int) -> str:
    """4096 -> "4K", 1048576 -> "1M", 1000000 -> "1,000,000"."""
    if count % 2**20 == 0:
        return f"{count // 2**20}M"
    return f"{count // 2**10}K" if count % 2**10 == 0 else f"{count:,}"
