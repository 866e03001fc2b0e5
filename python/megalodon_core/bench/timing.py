"""Timing several things fairly: in turn, so that a slow moment of the machine meets all of them."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

K = TypeVar("K", bound=Hashable)

Sample = Callable[[], dict[str, float]]
"""Runs something once and returns the seconds of its parts by name."""

_LEAST, _MOST, _PATIENCE = 5, 100, 1.5


def stopwatch(key: str, call: Callable[[], object], repeat: int = 1) -> Sample:
    """A sample of one part, `key`: the mean of `repeat` calls."""

    def sample() -> dict[str, float]:
        begin = time.perf_counter()
        for _ in range(repeat):
            call()
        return {key: (time.perf_counter() - begin) / repeat}

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
