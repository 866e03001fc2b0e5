"""What a person sees while something long runs: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_SECONDS_BETWEEN_LINES = 10.0
_LOG_WIDTH = 120


def output_console() -> Console:
    """Standard output for tables and sentences; where it is a file or a pipe, wide enough for every table."""
    width = None if sys.stdout.isatty() else _LOG_WIDTH
    return Console(width=width, highlight=False, soft_wrap=True)


class Display:
    """Progress of `total` steps; `update(done, text)` shows the text beside the bar.

    On a terminal this is a bar with the time left. In a log, where a bar would be noise, it is one line when
    the work begins to move, another every few seconds, and one at the end.
    """

    def __init__(self, title: str, total: int, unit: str, stream: TextIO | None = None) -> None:
        self._title, self._total, self._unit = title, total, unit
        self._stream = stream if stream is not None else sys.stderr
        self._console = Console(file=self._stream)
        self._bar: Progress | None = None
        self._begin: tuple[float, int] | None = None
        self._next_line = 0.0

    def __enter__(self) -> Display:
        if self._console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn(self._unit),
                TextColumn("{task.fields[text]}"),
                TimeRemainingColumn(),
                TextColumn("left"),
            )
            self._bar = Progress(*columns, console=self._console)
            self._bar.start()
            self._task = self._bar.add_task(self._title, total=self._total, text="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, done: int, text: str) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=done, text=text)
            return
        now = time.monotonic()
        if self._begin is None:
            self._begin = (now, done)
        if now < self._next_line and done < self._total:
            return
        self._next_line = now + _SECONDS_BETWEEN_LINES
        began, first = self._begin
        left = (now - began) / (done - first) * (self._total - done) if done > first else None
        remaining = "" if left is None else f"  {duration(left)} left"
        print(
            f"{self._title} {done:,}/{self._total:,} {self._unit}  {text}{remaining}",
            file=self._stream,
            flush=True,
        )


def duration(seconds: float) -> str:
    """`75` -> `1:15`; with hours where there are any."""
    minutes, whole_seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{whole_seconds:02}" if hours else f"{minutes}:{whole_seconds:02}"
