"""Reading one long stream through the model's constant-size state, and how well it is predicted."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from megalodon_core.model import Megalodon
from megalodon_core.state import MegalodonState
from megalodon_core.training.memory import peak_resident_bytes, resident_bytes

MARKS = (4096, 16384, 65536, 262144, 1048576)
PIECE = 4096


@dataclass(frozen=True)
class Piece:
    """What was measured on the piece of `length` values that ends at `position`.

    `bits` per value with the state carried in; `bits_afresh` from an empty state, or None if not asked for;
    memory resident after the piece (None where the system does not tell) and its peak so far.
    """

    position: int
    length: int
    bits: float
    bits_afresh: float | None
    resident_bytes: int | None
    peak_bytes: int


@dataclass(frozen=True)
class Mark:
    """At `position`: bits per value since the previous mark, the same afresh, since the start; memory."""

    position: int
    bits_inside: float
    bits_inside_afresh: float | None
    bits_so_far: float
    resident_bytes: int | None
    peak_bytes: int


@dataclass(frozen=True)
class Evaluation:
    """One stream of `length` predictions read in pieces; `state_bytes` is the size of the carried state."""

    length: int
    bits: float
    seconds: float
    tokens_per_second: float
    state_bytes: int
    marks: tuple[Mark, ...]
    pieces: tuple[Piece, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@torch.inference_mode()
def evaluate(
    model: Megalodon,
    stream: np.ndarray,
    *,
    piece: int = PIECE,
    marks: Sequence[int] = MARKS,
    compare: bool = False,
    progress: Callable[[int, str], None] = lambda done, text: None,
) -> Evaluation:
    """Predict `stream[1:]` from everything before each value, `piece` values at a time.

    Only the state passes from piece to piece, so memory does not depend on the stream's length. Marks beyond
    the end are dropped and the end is always one; pieces end at marks. With `compare` each piece is also read
    from an empty state, which is not counted in the time.
    """
    model.eval()
    length = len(stream) - 1
    stops = sorted({mark for mark in marks if mark < length} | {length})
    bounds = sorted({*range(0, length, piece), 0, *stops})
    state: MegalodonState | None = None
    pieces: list[Piece] = []
    bits, seconds = 0.0, 0.0
    for first, end in pairwise(bounds):
        values = torch.from_numpy(stream[first : end + 1].astype(np.int64))
        begin = time.perf_counter()
        here, state = _read(model, values, state)
        seconds += time.perf_counter() - begin
        afresh = _read(model, values, None)[0] if compare else None
        pieces.append(Piece(end, end - first, here, afresh, resident_bytes(), peak_resident_bytes()))
        bits += here * (end - first)
        progress(end, f"{bits / end:.3f} bits  {end / seconds:,.0f}/s")
    return Evaluation(
        length=length,
        bits=bits / length,
        seconds=seconds,
        tokens_per_second=length / seconds,
        state_bytes=0 if state is None else state.nbytes,
        marks=tuple(_mark(pieces, previous, stop) for previous, stop in pairwise([0, *stops])),
        pieces=tuple(pieces),
    )


def _read(
    model: Megalodon, values: torch.Tensor, state: MegalodonState | None
) -> tuple[float, MegalodonState | None]:
    """Mean bits of `values[1:]`, each predicted from `state` and the values before it; the state after."""
    logits, state = model(values[None, :-1], state)
    return F.cross_entropy(logits[0], values[1:]).item() / math.log(2), state


def _mark(pieces: Sequence[Piece], previous: int, stop: int) -> Mark:
    before = [one for one in pieces if one.position <= stop]
    inside = [one for one in before if one.position > previous]
    weights = [one.length for one in inside]
    afresh = [one.bits_afresh for one in inside if one.bits_afresh is not None]
    return Mark(
        position=stop,
        bits_inside=float(np.average([one.bits for one in inside], weights=weights)),
        bits_inside_afresh=float(np.average(afresh, weights=weights)) if afresh else None,
        bits_so_far=float(np.average([one.bits for one in before], weights=[one.length for one in before])),
        resident_bytes=inside[-1].resident_bytes,
        peak_bytes=inside[-1].peak_bytes,
    )
