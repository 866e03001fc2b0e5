"""Whether the CUDA kernels are right on this machine's GPU: a minute, before anything longer is run or timed.

    python tests/cuda_device.py [--output FILE.json] [--device cpu]

Every operator runs on small random calls, batches, packed documents and padding, in four types, and must
agree with the CPU in float64 as closely as its type allows; two runs must agree in every bit.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from calls import OPERATORS, SEQUENCE_OPERATORS, Call, Tokens, cotangents, example
from frontends import Arrays, Place, Torch, why_no_gpu
from megalodon_core import cuda, ops
from tolerance import relative_error
from torch import Tensor

RTOL = {torch.float64: 1e-10, torch.float32: 2e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}
"""|gpu - cpu| / |cpu|, with the CPU in float64 on the same inputs."""
TOKENS = [Tokens(batch=3, length=150), Tokens(documents=(130, 0, 1, 64, 65)), Tokens(2, 150, padded=True)]
CPU = Torch(ops, Place())


def on(device: torch.device) -> Torch:
    """The operators on a device."""
    place = Place()
    place.device = device
    return Torch(ops, place)


def cases() -> Iterator[tuple[str, torch.dtype, dict[str, Any]]]:
    for op in OPERATORS:
        for dtype in RTOL:
            for sizes in [{"tokens": tokens} for tokens in TOKENS] if op in SEQUENCE_OPERATORS else [{}]:
                yield op, dtype, sizes


def converted(call: Call, convert: Callable[[Tensor], Tensor]) -> Call:
    """The call with every tensor passed through `convert`."""
    each, options = (
        {name: convert(x) if isinstance(x, Tensor) else x for name, x in given.items()}
        for given in (call.inputs, call.options)
    )
    return Call(call.op, each, options)


def flat(result: Any) -> Arrays:
    return result.outputs | {f"d{name}": x for name, x in result.gradients.items() if x is not None}


def check(device: torch.device, op: str, dtype: torch.dtype, sizes: dict[str, Any]) -> float:
    """The largest error of one call; raises AssertionError where it is too large or two runs differ."""
    call = example(op, dtype, **sizes)
    drawn = cotangents(CPU.forward(call))
    wide = converted(call, lambda x: x.double() if x.is_floating_point() else x)
    exact = flat(CPU.run(wide, {name: x.double() for name, x in drawn.items()}))
    first, second = flat(on(device).run(call, drawn)), flat(on(device).run(call, drawn))
    worst = 0.0
    for name, x in exact.items():
        assert torch.equal(first[name], second[name]), f"{op} {dtype}: {name}: two runs differ"
        if x.is_floating_point():
            error = relative_error(first[name], x)
            assert error < RTOL[dtype], f"{op} {dtype} {sizes}: {name}: error {error:.3g}"
            worst = max(worst, error)
        else:
            assert torch.equal(first[name], x), f"{op}: {name}"
    return worst


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and (reason := why_no_gpu()):
        raise SystemExit(f"nothing to check on a GPU: {reason}")
    print(f"{cuda.status()}, torch {torch.__version__}")
    device = torch.device("cuda", 0) if arguments.device == "cuda" else torch.device("cpu")
    errors: dict[str, float] = {}
    wrong = []
    for op, dtype, sizes in cases():
        name = f"{op} {str(dtype).removeprefix('torch.')}"
        try:
            errors[name] = max(errors.get(name, 0.0), check(device, op, dtype, sizes))
        except AssertionError as error:
            wrong.append(str(error))
    for name, error in errors.items():
        print(f"{name:<32}error {error:.2e}")
    print("\n".join(wrong) or "every operator agrees with the CPU")
    if arguments.output:
        arguments.output.write_text(json.dumps({"errors": errors, "wrong": wrong}, indent=2))
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
