"""What the project wants of its speed, on a CPU and on a GPU, as data: one bar a line, over one run.

A figure's name is a path such as `operator.cema.float32.forward.share`. A bar names one or, with `*`,
several, and holds if all of them do. Bars are a statement, not a test: machines are noisy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

from rich.box import SIMPLE_HEAD
from rich.table import Table

AT_LEAST, AT_MOST = ">=", "<="


class Bar(NamedTuple):
    """`figure sense limit` is wanted of every figure that matches, where one is named on a CPU of `isa`."""

    what: str
    figure: str
    sense: str
    limit: float
    isa: str | None = None


def _moves(operator: str, what: str, forward: float, backward: float, bf16: float) -> list[Bar]:
    """Bars of a memory-bound operator: its time over the copy of its tensors."""
    limits = {
        ("float32", "forward"): forward,
        ("float32", "backward"): backward,
        ("bfloat16", "forward"): bf16,
        ("bfloat16", "backward"): bf16,
    }
    return [
        Bar(
            f"{what} {direction}, {dtype}: time / copy",
            f"operator.{operator}.{dtype}.{direction}.over_floor",
            AT_MOST,
            limit,
        )
        for (dtype, direction), limit in limits.items()
    ]


CEMA = "operator.cema"
ATTENTION = "operator.normalized_attention"
MODEL = "model.megalodon"
MEMORY = "memory.megalodon"

BARS = [
    Bar("cema forward: share of the GEMM rate", f"{CEMA}.float32.forward.share", AT_LEAST, 0.70),
    Bar("cema forward: FFT, ready kernel / time", f"{CEMA} (ready kernel).*.forward.eager", AT_LEAST, 15),
    Bar("cema forward, bfloat16 / float32", f"{CEMA}.bfloat16.forward.over_float32", AT_MOST, 1.1),
    Bar("cema forward + backward / forward", f"{CEMA}.*.both.over_forward", AT_MOST, 5),
    Bar("cema forward + backward: FFT / time", f"{CEMA}.*.both.eager", AT_LEAST, 10),
    *_moves("timestep_norm", "timestep_norm", 1.6, 1.8, 2.0),
    *_moves("rms_norm", "rms_norm", 1.3, 1.3, 1.6),
    *_moves("add_layer_norm", "add_layer_norm", 1.3, 1.3, 1.6),
    *_moves("silu_mul", "silu_mul", 1.3, 1.3, 1.6),
    Bar("attention forward: share of the GEMM rate", f"{ATTENTION}.float32.forward.share", AT_LEAST, 0.75),
    Bar("attention backward: share of the GEMM rate", f"{ATTENTION}.float32.backward.share", AT_LEAST, 0.65),
    Bar("attention, bfloat16 / float32", f"{ATTENTION}.bfloat16.*ward.over_float32", AT_MOST, 1 / 1.5,
        isa="avx512bf16"),
    Bar("model forward: share of the GEMM rate", f"{MODEL}.float32.4096.forward.share", AT_LEAST, 0.75),
    Bar("model forward + backward: share", f"{MODEL}.float32.4096.both.share", AT_LEAST, 0.75),
    Bar("model, L = 4096: LLaMA / time", f"{MODEL}.float32.4096.*.llama", AT_LEAST, 1),
    Bar("model, L = 16384: LLaMA / time", f"{MODEL}.float32.16384.*.llama", AT_LEAST, 2),
    Bar("model, bfloat16 / float32", f"{MODEL}.bfloat16.*.over_float32", AT_MOST, 1 / 1.6),
    Bar("model's peak memory, L = 4096, GB", f"{MEMORY}.float32.4096.gigabytes", AT_MOST, 1.6),
    Bar("model's peak memory, L = 16384 / 4096", f"{MEMORY}.*.growth", AT_MOST, 4.2),
    Bar("model's peak memory, bfloat16 / float32", f"{MEMORY}.bfloat16.*.over_float32", AT_MOST, 0.65),
    Bar("decoding a token / reading its weights", "decode.*.over_read", AT_MOST, 1.5),
    Bar("time per token, L = 256K / 4K, operators", "scaling.operator.*.growth", AT_MOST, 1.1),
    Bar("time per token, 1M / 64K, streaming model", "scaling.stream.growth", AT_MOST, 1.1),
    Bar("two threads against one, B = 1", "threads.*.1", AT_LEAST, 1.8),
    Bar("two threads against one, B = 8", "threads.*.8", AT_LEAST, 1.8),
    Bar("AVX2 time / that of the best set here", "isa.*.avx2", AT_MOST, 2.5),
    Bar("baseline time / that of the best set here", "isa.*.baseline", AT_MOST, 8),
    Bar("overhead of a call under no_grad, us", "overhead.*.forward", AT_MOST, 15),
    Bar("overhead of a call under autograd, us", "overhead.*.recorded", AT_MOST, 30),
    Bar("D = 64, L = 128: plain PyTorch / time", "small.*", AT_LEAST, 1),
]  # fmt: skip


def _of_bandwidth(operator: str) -> Bar:
    """A bar of an operator that only moves memory on a GPU."""
    what, figure = f"{operator}: share of copy bandwidth", f"operator.{operator}.bfloat16.*ward.share"
    return Bar(what, figure, AT_LEAST, 0.85)


NORM = "operator.timestep_norm"

GPU_BARS = [
    Bar("cema forward: time / copy of x and y", f"{CEMA}.bfloat16.forward.over_floor", AT_MOST, 2.0),
    Bar("cema forward + backward: time / copy", f"{CEMA}.bfloat16.both.over_forward_floor", AT_MOST, 5.0),
    Bar("timestep_norm forward: time / copy", f"{NORM}.bfloat16.forward.over_floor", AT_MOST, 1.4),
    Bar("timestep_norm backward: time / copy", f"{NORM}.bfloat16.backward.over_floor", AT_MOST, 1.6),
    *map(_of_bandwidth, ("rms_norm", "layer_norm", "add_layer_norm", "silu_mul", "two_hop_residual")),
    Bar("attention forward: share of matrix rate", f"{ATTENTION}.bfloat16.forward.share", AT_LEAST, 0.55),
    Bar("attention backward: share of matrix rate", f"{ATTENTION}.bfloat16.backward.share", AT_LEAST, 0.45),
    Bar("cema: best peer / time", f"{CEMA}.bfloat16.*.best_peer", AT_LEAST, 3.0),
    Bar("timestep_norm: best peer / time", f"{NORM}.bfloat16.*.best_peer", AT_LEAST, 2.0),
    Bar("attention: best peer / time", f"{ATTENTION}.bfloat16.*.best_peer", AT_LEAST, 1.5),
    Bar("layer at 4K: tokens/s over a LLaMA-2-7B layer's", "layer.4096.over_llama", AT_LEAST, 0.97),
    Bar("layer at 32K: tokens/s over a LLaMA-2-7B layer's", "layer.32768.over_llama", AT_LEAST, 1.40),
    Bar("layer at 128K: tokens/s over a LLaMA-2-7B layer's", "layer.131072.over_llama", AT_LEAST, 3.0),
    Bar("layer: peak memory of activations over LLaMA's", "layer.*.memory_over_llama", AT_MOST, 1.0),
    Bar("decoding a token in a layer / reading its weights", "decode.start.over_read", AT_MOST, 1.3),
]  # fmt: skip


class Verdict(NamedTuple):
    """A bar, the matching figures, and the one that is farthest from holding."""

    bar: Bar
    figures: dict[str, float]
    worst: str
    holding: int

    @property
    def holds(self) -> bool:
        return self.holding == len(self.figures)


def judge(figures: Mapping[str, float], bars: Sequence[Bar], isa: str | None = None) -> list[Verdict]:
    """Every bar of which something was measured, against the figures of a run on this instruction set."""
    verdicts = []
    for bar in bars:
        if bar.isa not in (None, isa):
            continue
        found = {name: value for name, value in figures.items() if fnmatchcase(name, bar.figure)}
        if not found:
            continue
        least = bar.sense == AT_LEAST
        holding = sum(value >= bar.limit if least else value <= bar.limit for value in found.values())
        worst = (min if least else max)(found, key=found.__getitem__)
        verdicts.append(Verdict(bar, found, worst, holding))
    return verdicts


def table(verdicts: list[Verdict]) -> Table:
    """What is wanted, what was measured at worst and where, and whether it holds."""
    result = Table(title="bars", box=SIMPLE_HEAD, padding=(0, 1))
    result.add_column("bar", no_wrap=True)
    for heading in ("wanted", "measured"):
        result.add_column(heading, justify="right", no_wrap=True)
    result.add_column("holds", no_wrap=True)
    result.add_column("worst of several", no_wrap=True)
    for verdict in verdicts:
        bar, figures, worst, holding = verdict
        wanted = f"{bar.sense} {bar.limit:.3g}"
        holds = "yes" if verdict.holds else "no"
        if len(figures) > 1:
            holds += f" {holding}/{len(figures)}"
        place = _varying(bar.figure, worst) if len(figures) > 1 else ""
        result.add_row(bar.what, wanted, f"{figures[worst]:.3g}", holds, place)
    return result


def _varying(pattern: str, figure: str) -> str:
    """What `*` stands for: the parts of the figure's name that the pattern does not fix."""
    fixed = set(pattern.split("."))
    return " ".join(part for part in figure.split(".") if part not in fixed)
