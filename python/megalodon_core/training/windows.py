"""Which tokens each training step reads, as a pure function of the step.

Each row of the batch reads a *window* of `carry * segment_length` consecutive tokens, one segment a step,
with its state carried from segment to segment; then it jumps to a new random place and starts from an empty
state. Rows jump at evenly staggered steps, so every batch holds young and old states. As nothing is drawn
from a running generator, the place in the data needs no bookkeeping: a resumed run just asks for its next
step.

Worked example, 2 rows and carry 4: row 0 starts a window at steps 0, 4, 8, ...; row 1 is in the middle of its
first window at step 0 and starts the next ones at steps 2, 6, 10, ...
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from megalodon_core.errors import UserError


class Segment(NamedTuple):
    """`inputs, targets (rows, segment_length)` int64; `fresh (rows,)` bool, True where a window begins."""

    inputs: np.ndarray
    targets: np.ndarray
    fresh: np.ndarray


class Windows:
    """`segment(step)` of a 1-D token array for `rows` parallel streams."""

    def __init__(self, tokens: np.ndarray, rows: int, segment_length: int, carry: int, seed: int) -> None:
        self.tokens, self.rows, self.segment_length, self.carry, self.seed = (
            tokens,
            rows,
            segment_length,
            carry,
            seed,
        )
        self._places = len(tokens) - carry * segment_length
        if self._places < 1:
            raise UserError(
                f"the training text has {len(tokens):,} values, but one window of {carry} segments of "
                f"{segment_length} needs {carry * segment_length + 1:,}"
            )

    def segment(self, step: int) -> Segment:
        values = np.empty((self.rows, self.segment_length + 1), np.int64)
        fresh = np.empty(self.rows, bool)
        for row in range(self.rows):
            window, age = divmod(step + row * self.carry // self.rows, self.carry)
            begin = self._start(row, window) + age * self.segment_length
            values[row] = self.tokens[begin : begin + self.segment_length + 1]
            fresh[row] = age == 0 or step == 0
        return Segment(values[:, :-1], values[:, 1:], fresh)

    def _start(self, row: int, window: int) -> int:
        return int(np.random.default_rng((self.seed, row, window)).integers(self._places))
