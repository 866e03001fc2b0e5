"""How much every operator and gradient loses in low precision, beside what plain PyTorch loses.

    python tests/precision.py --output docs/precision.md
    python tests/precision.py --check docs/precision.md

Both are compared with the float64 reference on the same rounded inputs. Plain PyTorch is that same reference
with every intermediate in the type under test.
"""

from __future__ import annotations

import argparse
import datetime
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

import reference
import torch
from calls import OPERATORS, PARAMETER_TYPE, Call, Tokens, cotangents, example
from frontends import REFERENCE, TORCH, Arrays, Result
from megalodon_core import runtime
from tolerance import relative_error
from torch import Tensor

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
SHAPES = {
    "sequence": "B=2, L=120",
    "cema, ema": "D=64, N=16",
    "cema_coefficients": "D=256, N=16",
    "timestep_norm": "D=128, G=8",
    "attention": "B=1, L=90, H=2, Dz=32, Dv=48, c=40, 20 slots of initial state",
    "row-wise": "400 rows of D=256",
}
TOKENS = Tokens(batch=2, length=120)
ATTENTION = {
    "tokens": Tokens(batch=1, length=90),
    "heads": 2,
    "key_dim": 32,
    "value_dim": 48,
    "chunk_size": 40,
    "capacity": 20,
}
SIZES = {
    "cema": {"tokens": TOKENS, "dim": 64, "ndim": 16},
    "ema": {"tokens": TOKENS, "dim": 64, "ndim": 16},
    "cema_coefficients": {"dim": 256, "ndim": 16},
    "timestep_norm": {"tokens": TOKENS, "groups": 8, "width": 16},
    "chunk_attention": ATTENTION,
    "normalized_attention": ATTENTION,
}
FACTOR = 2
"""How much more than documented an operator may lose on another machine or instruction set."""


class Errors(NamedTuple):
    """Of one array: |a - e| / |e| as norms, and max |a - e| / max |e|."""

    norm: float
    maximum: float


class Row(NamedTuple):
    """What one output or gradient of an operator loses, here and in plain PyTorch."""

    op: str
    array: str
    ours: Errors
    plain: Errors


def measure(op: str, dtype: torch.dtype) -> list[Row]:
    """One row per floating output and per gradient."""
    call, drawn, exact, plain = expected(op, dtype)
    ours = named(TORCH.run(call, drawn))
    return [
        Row(op, name, errors(ours[name], x), errors(plain[name], x))
        for name, x in exact.items()
        if x is not None and x.is_floating_point()
    ]


@cache
def expected(op: str, dtype: torch.dtype) -> tuple[Call, Arrays, Arrays, Arrays]:
    """A call, its cotangents, and all outputs and gradients: exact ones and those of plain PyTorch."""
    call = example(op, dtype, **SIZES.get(op, {"shape": (400, 256)}))
    parameter = PARAMETER_TYPE.get(dtype, torch.float32)
    drawn = {
        name: x.to(dtype if name == "y" else parameter)
        for name, x in cotangents(REFERENCE.forward(call)).items()
    }

    def in_precision(working: torch.dtype) -> Arrays:
        # The inputs too, since autograd rounds a gradient to the type of its input.
        inputs = {name: None if x is None else x.to(working) for name, x in call.inputs.items()}
        with reference.precision(working):
            result = REFERENCE.run(
                call.with_inputs(**inputs), {name: x.to(working) for name, x in drawn.items()}
            )
        return named(result)

    return call, drawn, in_precision(torch.float64), in_precision(dtype)


def named(result: Result) -> Arrays:
    return result.outputs | {f"d{name}": x for name, x in result.gradients.items()}


def errors(actual: Tensor, exact: Tensor) -> Errors:
    worst = (actual.double() - exact).abs().max() / exact.abs().max()
    return Errors(relative_error(actual, exact), worst.item())


def document(rows: dict[str, list[Row]]) -> str:
    shapes = "\n".join(f"- {name}: {shape}" for name, shape in SHAPES.items())
    tables = "\n".join(f"## {dtype}\n\n{table(rows[dtype])}\n" for dtype in rows)
    return f"""# Precision

Written by `make precision`, which runs `python tests/precision.py --output docs/precision.md`, on
{datetime.date.today()}: {processor()}, instruction set {runtime.isa()}, torch {torch.__version__}.

Errors against the float64 reference on the same rounded inputs, for every output and every gradient (`d...`).
`error` is |a - e| / |e| with the norm over the whole array, `max error` is max |a - e| / max |e|. `plain` is
PyTorch with every intermediate in the type of the section: the reference's own formulas in that type. In the
16-bit sections parameters, states and their gradients are float32, so they lose far less than 16 bits do.

Where the CPU multiplies bfloat16 (avx512bf16), attention on bfloat16 takes its products with values in it:
probabilities, and values that an initial state holds in float32, are rounded to bfloat16, and what is below
2^-126 counts as 0. Scores, their gradients and all sums are float32.

Rounding an exact result to its type costs about 1.7e-3 in bfloat16, 2.1e-4 in float16 and 2.5e-8 in float32.
`python tests/precision.py --check docs/precision.md` measures again and fails where an `error` is more than
{FACTOR} times what stands here. So does the test suite, on every instruction set.

Shapes:

{shapes}

{tables}"""


def table(rows: list[Row]) -> str:
    lines = ["| operator | array | error | plain | max error | plain |", "|---|---|---|---|---|---|"]
    for op, array, ours, plain in rows:
        values = (ours.norm, plain.norm, ours.maximum, plain.maximum)
        lines.append(f"| {op} | {array} | {' | '.join(f'{value:.1e}' for value in values)} |")
    return "\n".join(lines)


def documented(path: Path) -> dict[tuple[str, str, str], float]:
    """(dtype, operator, array) -> the error that a document states."""
    found, dtype = {}, ""
    for line in path.read_text().splitlines():
        if line.startswith("## "):
            dtype = line.removeprefix("## ")
        row = re.match(r"\| (\w+) \| (\w+) \| (\d\S+) \|", line)
        if row:
            found[dtype, row[1], row[2]] = float(row[3])
    return found


def excesses(dtype: str, rows: list[Row], allowed: dict[tuple[str, str, str], float]) -> list[str]:
    """The rows that lose more than `FACTOR` times what is documented, or are not documented."""
    complaints = []
    for op, array, ours, _ in rows:
        limit = allowed.get((dtype, op, array), 0.0)
        if not ours.norm <= FACTOR * limit:
            complaints.append(f"{dtype} {op} {array}: {ours.norm:.1e} exceeds {FACTOR} times {limit:.1e}")
    return complaints


def processor() -> str:
    names = re.findall(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    return names[0] if names else "unknown processor"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--output", type=Path, help="write the document here")
    parser.add_argument("--check", type=Path, help="compare with this document instead")
    arguments = parser.parse_args()
    rows = {name: [row for op in OPERATORS for row in measure(op, dtype)] for name, dtype in DTYPES.items()}
    for name in rows:
        print(f"{name}\n{table(rows[name])}\n")
    if arguments.output:
        arguments.output.write_text(document(rows))
    if arguments.check:
        allowed = documented(arguments.check)
        complaints = [complaint for name in rows for complaint in excesses(name, rows[name], allowed)]
        print("\n".join(complaints) or f"within {FACTOR} times {arguments.check}")
        return 1 if complaints else 0
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
