"""Timing several things fairly: in turn, so that a slow moment of the machine meets all of them."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping
from itertools import pairwise
from typing import Any, TypeVar

import torch

K = TypeVar("K", bound=Hashable)

Sample = Callable[[], dict[str, float]]
"""Runs something once and returns the seconds of its parts by name."""

_LEAST, _MOST, _PATIENCE = 5, 100, 1.5
_PAUSE = 2_000_000  # cycles of a GPU, about a millisecond


class Clock:
    """Begins to run, and gives the seconds from mark to mark, on torch's default device.

    On a GPU marks are events, and a pause holds back the queue until the launches are in it: what is timed is
    the device's work and not the launching of it, unless that takes longer than the pause.
    """

    def __init__(self) -> None:
        self._on_gpu = torch.get_default_device().type == "cuda"
        self._marks: list[Any] = []
        if self._on_gpu:
            torch.cuda.synchronize()
            torch.cuda._sleep(_PAUSE)
        self.mark()

    def mark(self) -> None:
        if self._on_gpu:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append(event)
        else:
            self._marks.append(time.perf_counter())

    def seconds(self) -> list[float]:
        if not self._on_gpu:
            return [end - begin for begin, end in pairwise(self._marks)]
        torch.cuda.synchronize()
        return [begin.elapsed_time(end) / 1e3 for begin, end in pairwise(self._marks)]


def stopwatch(key: str, call: Callable[[], object], repeat: int = 1) -> Sample:
    """A sample of one part, `key`: the mean of `repeat` calls."""

    def sample() -> dict[str, float]:
        clock = Clock()
        for _ in range(repeat):
            call()
        clock.mark()
        (seconds,) = clock.seconds()
        return {key: seconds / repeat}

    return sample


def interleave(
    samples: Mapping[K, Sample],
    seconds: float,
    *,
    least: int = _LEAST,
    most: int = _MOST,
    patience: float = _PATIENCE,
) -> dict[K, dict[str, list[float]]]:
    """Take all samples in turn for about `seconds` in all: name -> part -> times. They are warm already.

    Each is taken at least `least` times, unless it has used up `patience` before: one run times so slow a
    thing well. One that has used up its share of the time drops out of later rounds, so that a slow peer does
    not keep a fast operator from being measured often.
    """
    share = seconds / len(samples)
    spent = dict.fromkeys(samples, 0.0)
    taken: dict[K, dict[str, list[float]]] = {name: defaultdict(list) for name in samples}
    going_on = list(samples)
    rounds = 0
    while going_on:
        for name in going_on:
            begin = time.perf_counter()
            parts = samples[name]()
            spent[name] += time.perf_counter() - begin
            for part, value in parts.items():
                taken[name][part].append(value)
        rounds += 1
        going_on = [
            name
            for name in going_on
            if rounds < most and spent[name] < (patience if rounds < least else share)
        ]
    return taken
