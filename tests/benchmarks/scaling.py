"""How an operator's time depends on length, threads and instruction set, and when there is little to do."""

from __future__ import annotations

import json
import math
import resource
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import replace
from statistics import median
from typing import Any, TypeVar

import torch
from megalodon_core import Megalodon, runtime
from megalodon_core.bench import ceilings, harness
from megalodon_core.bench.operators import CASES, FULL, Case, Size
from megalodon_core.bench.timing import Sample, interleave, stopwatch
from megalodon_core.training.run import small_config
from torch import Tensor

S = TypeVar("S", int, str)

DIRECTIONS = ("forward", "backward")
FEW_FAULTS = 1000  # page faults of 4 KiB

LENGTHS = (4096, 16384, 65536, 262144)
STREAM_MARKS = tuple(2**n for n in range(16, 21))
OWN = [case for case in CASES if not case.note]
SEQUENCE = [case for case in OWN if case.operator not in ("cema_coefficients", "chunk_attention")]
"""Operators over a length; chunk_attention, which is normalized_attention less its norm, is left out."""
SMALL = Size(length=128, dim=64, ndim=16, groups=4, z_dim=16, value_dim=128, chunk_size=64)
LEAST_WORK = Size(length=1, dim=16, ndim=1, groups=1, z_dim=2, value_dim=2, chunk_size=2)
"""So little that a call's time is its overhead."""


def samples_of(case: Case, size: Size, make: harness.MakeSide = harness.ours) -> tuple[Sample, ...]:
    """Forward and training samples in float32; inputs repeat after 4096 tokens, cotangents are outputs."""
    torch.manual_seed(0)
    short = replace(size, length=min(size.length, 4096))
    inputs = case.draw(short, torch.float32)
    if size.length > short.length:
        inputs = tuple(
            torch.cat([x] * (size.length // short.length), dim=1) if activation else x
            for x, activation in zip(inputs, case.activations, strict=False)
        )
    with torch.no_grad():
        outputs = case.ours(size)(*inputs)
    side = make(case, size, inputs, (outputs,) if isinstance(outputs, Tensor) else outputs)
    assert side is not None
    return side.samples


def warm(samples: tuple[Sample, ...]) -> tuple[Sample, ...]:
    """The same samples, which have run once."""
    for sample in samples:
        sample()
    return samples


def settle(sample: Sample) -> None:
    """Run the sample until it takes no new memory from the system, or a few times."""
    for _ in range(6):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        sample()
        if resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < FEW_FAULTS:
            return


def in_kept_memory(section: str) -> dict[str, float]:
    """The figures of one of `KEEPS_MEMORY`, from a process of its own that keeps freed memory.

    Elsewhere the system hands out pages more slowly than most operators fill them, and by no rule.
    """
    command = [sys.executable, __file__, section, str(torch.get_num_threads())]
    process = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    figures: dict[str, float] = json.loads(process.stdout)
    return figures


def lengths() -> dict[str, float]:
    """`scaling.operator.<op>.<direction>.<L>`: seconds; `.growth`: of the time per token to the longest L.

    Forward is timed inside forward + backward. Each time is the fastest of several: slower runs are those for
    which the process still took pages from the system. `scaling.clone` is a clone of one activation tensor.
    """
    figures: dict[str, float] = {}
    for case in SEQUENCE:
        for length in LENGTHS:
            training = samples_of(case, replace(FULL, length=length))[-1]
            parts = _repeated(training)
            for direction, part in (("forward", "recorded"), ("both", "both")):
                figures[f"scaling.operator.{case.operator}.{direction}.{length}"] = min(parts[part])
        for direction in ("forward", "both"):
            _growth(figures, f"scaling.operator.{case.operator}.{direction}", LENGTHS)
    for length in LENGTHS:
        (sample,) = ceilings.clone(torch.float32, clone=2 * length * FULL.dim)
        figures[f"scaling.clone.{length}"] = min(_repeated(sample)["clone"])
    _growth(figures, "scaling.clone", LENGTHS)
    return figures


def _repeated(sample: Sample) -> dict[str, list[float]]:
    settle(sample)
    return interleave({"": sample}, 0.5, least=3, patience=4.0)[""]


def _growth(figures: dict[str, float], name: str, positions: tuple[int, ...]) -> None:
    first, last = positions[0], positions[-1]
    figures[f"{name}.growth"] = (figures[f"{name}.{last}"] / last) / (figures[f"{name}.{first}"] / first)


def stream() -> dict[str, float]:
    """`scaling.stream.<L>`: seconds to L tokens, read 4096 at a time; `.growth`: of the time per token.

    Two layers of width 192 in float32. Growth is the median time of a piece of the last 64K tokens of 1M over
    that of the first 64K of another stream, read in turn: the machine's pace changes within the whole run.
    """
    torch.manual_seed(0)
    model = Megalodon(small_config(2, 192, 256, 256))
    tokens = torch.randint(256, (1, 4096))
    with torch.no_grad():
        model(tokens)
    read = _reader(model, tokens)
    first, last = STREAM_MARKS[0], STREAM_MARKS[-1]
    figures, done = {}, 0
    begin = time.perf_counter()
    for mark in STREAM_MARKS:
        while done < min(mark, last - first):
            read()
            done += 4096
        figures[f"scaling.stream.{mark}"] = time.perf_counter() - begin
    pieces = {"early": _reader(model, tokens), "late": read}
    count = first // 4096
    taken = interleave(pieces, 0.0, least=count, patience=math.inf)
    figures[f"scaling.stream.{last}"] += sum(taken["late"]["piece"])
    figures["scaling.stream.growth"] = median(taken["late"]["piece"]) / median(taken["early"]["piece"])
    return figures


def _reader(model: Megalodon, tokens: Tensor) -> Sample:
    """A stream of its own: each sample reads the tokens as its next piece."""
    state = None

    @torch.no_grad()
    def piece() -> None:
        nonlocal state
        _, state = model(tokens, state)

    return stopwatch("piece", piece)


def threads() -> dict[str, float]:
    """`threads.<op>.<direction>.<B>`: one thread's time over that of two; L is 4096 / B.

    `threads.<op>.<direction>.limit`, at B = 1: for what memory bounds, the most that two could gain, which is
    one thread's time over the copy of its tensors by two; for the others, what torch's matrix product gains,
    run in turn with them.
    """
    figures: dict[str, float] = {}
    for case in OWN:
        if case.operator == "cema_coefficients":
            continue
        by_memory = case.floor.unit == "copy"
        if by_memory:
            moved = {"forward": case.floor.forward(FULL), "backward": case.floor.backward(FULL)}
            ceiling = ceilings.copy(torch.float32, **{f"copy_{part}": count for part, count in moved.items()})
        else:
            ceiling = (ceilings.gemm(torch.float32, product=1e9),)
        for batch, length in ((1, 4096), (8, 512)):
            samples = samples_of(case, replace(FULL, batch=batch, length=length))
            samples = warm(samples + ceiling if batch == 1 else samples)
            found = _settings(samples, (1, 2), torch.set_num_threads, 2)
            for direction in DIRECTIONS:
                times = found[direction]
                figures[f"threads.{case.operator}.{direction}.{batch}"] = times[1] / times[2]
                if batch == 1:
                    one = times[1] if by_memory else found["product"][1]
                    two = found[f"copy_{direction}" if by_memory else "product"][2]
                    figures[f"threads.{case.operator}.{direction}.limit"] = one / two
    return figures


def instruction_sets() -> dict[str, float]:
    """`isa.<op>.<direction>.<set>`: the set's time over the best set's, L = 2048."""
    best = runtime.isa()
    others = [name for name in runtime.available_isas() if name != best]
    figures: dict[str, float] = {}
    for case in OWN:
        samples = warm(samples_of(case, replace(FULL, length=2048)))
        found = _settings(samples, (*others, best), runtime.set_isa, best)
        for direction in DIRECTIONS:
            for name in others:
                times = found[direction]
                figures[f"isa.{case.operator}.{direction}.{name}"] = times[name] / times[best]
    return figures


def _settings(
    samples: tuple[Sample, ...], settings: Iterable[S], use: Callable[[S], object], usual: S
) -> dict[str, dict[S, float]]:
    """Median seconds of the samples' parts under each setting, in turn: part -> setting -> seconds."""

    def under(setting: S, sample: Sample) -> Sample:
        def run() -> dict[str, float]:
            use(setting)
            return sample()

        return run

    try:
        taken = interleave(
            {(s, i): under(s, sample) for s in settings for i, sample in enumerate(samples)}, 1.0, least=3
        )
    finally:
        use(usual)
    found: dict[str, dict[S, float]] = defaultdict(dict)
    for (setting, _), parts in taken.items():
        for part, times in parts.items():
            found[part][setting] = median(times)
    return found


class OnlyAllocates(torch.autograd.Function):
    """The least that an operator of two inputs, written in Python, can do under autograd."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return torch.empty_like(a)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor]:
        a, b = ctx.saved_tensors
        return torch.empty_like(a), torch.empty_like(b)


def least_overhead() -> dict[str, float]:
    """`least.<part>`: microseconds of an operator in Python that makes its outputs and does nothing else."""
    a, b, dy = (torch.zeros(1, 128, 64, requires_grad=wanted) for wanted in (True, True, False))
    calls: dict[str, Callable[[], object]] = {
        "forward": lambda: torch.empty_like(dy),
        "recorded": lambda: OnlyAllocates.apply(a, b),
        "both": lambda: torch.autograd.grad(OnlyAllocates.apply(a, b), (a, b), dy),
    }
    samples = {part: stopwatch("seconds", call) for part, call in calls.items()}
    taken = interleave(samples, 0.4, most=1000)
    return {f"least.{part}": median(times["seconds"]) * 1e6 for part, times in taken.items()}


def little() -> dict[str, float]:
    """`small.<op>.<part>`: eager PyTorch's time over ours; `overhead.<op>.<part>`: microseconds of a call.

    `eager.<op>.<part>`: PyTorch's own time, in microseconds.
    """
    figures: dict[str, float] = {}
    for case in OWN:
        sides = {
            "ours": warm(samples_of(case, SMALL)),
            "eager": warm(samples_of(case, SMALL, harness.eager)),
        }
        labelled = {(name, i): s for name, samples in sides.items() for i, s in enumerate(samples)}
        times: dict[str, dict[str, float]] = {"ours": {}, "eager": {}}
        for (name, _), parts in interleave(labelled, 1.0, most=400).items():
            times[name].update({part: median(values) for part, values in parts.items()})
        for part in ("forward", "recorded", "both"):
            figures[f"small.{case.operator}.{part}"] = times["eager"][part] / times["ours"][part]
            figures[f"eager.{case.operator}.{part}"] = times["eager"][part] * 1e6
        for sample in warm(samples_of(case, LEAST_WORK)):
            for part, values in interleave({"": sample}, 0.2, most=1000)[""].items():
                if part in ("forward", "recorded"):
                    figures[f"overhead.{case.operator}.{part}"] = median(values) * 1e6
    return figures | least_overhead()


KEEPS_MEMORY = {"lengths": lengths, "threads": threads}

if __name__ == "__main__":
    _, section, number_of_threads = sys.argv
    torch.set_num_threads(int(number_of_threads))
    runtime.keep_freed_memory()
    print(json.dumps(KEEPS_MEMORY[section]()))
