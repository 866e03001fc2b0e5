"""The two pictures people ask for: time against length, and every operator's share of its floor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator
from megalodon_core.bench.harness import DIRECTIONS, Row
from megalodon_core.training.plots import short_count

_COLORS = {"forward": "tab:blue", "backward": "tab:orange", "both": "tab:green"}


def time_against_length(figures: Mapping[str, float], path: Path, title: str) -> None:
    """Logarithmic axes, where linear cost is a line of slope 1: operators left, the stream right."""
    figure = Figure(figsize=(11, 5), layout="constrained")
    left, right = figure.subplots(1, 2)
    names = sorted({name.split(".")[2] for name in figures if name.startswith("scaling.operator.")})
    for index, name in enumerate(names):
        for direction, style in (("forward", "-"), ("both", "--")):
            label = name if direction == "forward" else None
            points = _points(figures, f"scaling.operator.{name}.{direction}.")
            left.plot(*points, style, marker="o", markersize=3, color=f"C{index}", label=label)
    left.plot([], [], "--", color="0.4", label="forward + backward")
    left.plot(*_points(figures, "scaling.clone."), ":", color="0.2", label="a clone of x")
    left.set_title("operators, D=1024, float32")
    right.plot(*_points(figures, "scaling.stream."), "o-", color="tab:blue")
    right.set_title("reading a stream, 2 layers of width 192")
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xlabel("tokens")
        axes.set_ylabel("seconds")
        ticks = sorted({x for line in axes.lines for x in line.get_xdata()})
        axes.xaxis.set_major_locator(FixedLocator(ticks))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda position, _: short_count(round(position))))
        axes.grid(alpha=0.3)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter("{x:g}")
    figure.legend(*left.get_legend_handles_labels(), fontsize=8, loc="outside lower center", ncols=6)
    figure.suptitle(title)
    figure.savefig(path, dpi=120)


def share_of_floor(rows: Sequence[Row], path: Path, title: str) -> None:
    """Bars per operator; the line at 1 is the floor. A better matrix product than torch's passes it."""
    dtypes = list(dict.fromkeys(row.dtype for row in rows))
    cases = list(dict.fromkeys(row.case for row in rows if row.case != "cema (ready kernel)"))
    figure = Figure(figsize=(11, 5.5), layout="constrained")
    for axes, dtype in zip(
        figure.subplots(1, len(dtypes), squeeze=False, sharey=True)[0], dtypes, strict=True
    ):
        for offset, direction in enumerate(DIRECTIONS):
            share = {r.case: r.share for r in rows if r.dtype == dtype and r.direction == direction}
            measured = [case for case in cases if case in share]
            places = [len(cases) - cases.index(case) - 0.27 * (offset - 1) for case in measured]
            values = [share[case] for case in measured]
            bars = axes.barh(places, values, height=0.25, color=_COLORS[direction], label=direction)
            axes.bar_label(bars, fmt="%.2f", fontsize=7, padding=2)
        axes.set_yticks([len(cases) - index for index in range(len(cases))], cases)
        axes.axvline(1.0, color="0.2", linestyle=":", linewidth=1)
        axes.set_xlim(0, 1.1 * max(row.share for row in rows))
        axes.set_xlabel("floor / time: at 1 as fast as the copy, or as torch's product")
        axes.set_title(dtype)
        axes.grid(axis="x", alpha=0.3)
    axes.legend(loc="lower right", fontsize=8)
    figure.suptitle(title)
    figure.savefig(path, dpi=120)


def _points(figures: Mapping[str, float], prefix: str) -> tuple[list[int], list[float]]:
    """The figures `<prefix><length>` in order of length."""
    found = {name.removeprefix(prefix): value for name, value in figures.items() if name.startswith(prefix)}
    lengths = sorted(int(name) for name in found if name.isdecimal())
    return lengths, [found[str(length)] for length in lengths]
