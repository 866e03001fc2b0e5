"""The CUDA kernels on this machine's GPU: right first, then their time against a copy of what they must move.

    python tests/cuda_device.py [--output FILE.json]

Every operator runs on small random calls, batches, packed documents and padding, in four types, and must
agree with the CPU in float64 as closely as its type allows; two runs must agree in every bit. Only then is it
timed.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from calls import OPERATORS, SEQUENCE_OPERATORS, Call, Tokens, cotangents, example
from frontends import TORCH, Arrays
from megalodon_core import cuda, ops
from tolerance import relative_error
from torch import Tensor

RTOL = {torch.float64: 1e-10, torch.float32: 2e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}
"""|gpu - cpu| / |cpu|, with the CPU in float64 on the same inputs."""
TOKENS = [Tokens(batch=3, length=150), Tokens(documents=(130, 0, 1, 64, 65)), Tokens(2, 150, padded=True)]


def moved(call: Call, convert: Callable[[Tensor], Tensor]) -> Call:
    """The call with every tensor passed through `convert`."""
    each = {name: convert(x) if isinstance(x, Tensor) else x for name, x in call.inputs.items()}
    options = {name: convert(x) if isinstance(x, Tensor) else x for name, x in call.options.items()}
    return Call(call.op, each, options)


def flat(result: Any) -> Arrays:
    return result.outputs | {f"d{name}": x for name, x in result.gradients.items() if x is not None}


def check(op: str, dtype: torch.dtype, sizes: dict[str, Any]) -> float:
    """The largest error of one call; raises AssertionError where it is too large or two runs differ."""
    call = example(op, dtype, **sizes)
    drawn = cotangents(TORCH.forward(call))
    wide = moved(call, lambda x: x.double() if x.is_floating_point() else x)
    exact = flat(TORCH.run(wide, {name: x.double() for name, x in drawn.items()}))
    device = moved(call, Tensor.cuda)
    given = {name: x.cuda() for name, x in drawn.items()}
    first, second = flat(TORCH.run(device, given)), flat(TORCH.run(device, given))
    worst = 0.0
    for name, x in exact.items():
        assert torch.equal(first[name], second[name]), f"{op} {dtype}: {name}: two runs differ"
        if x.is_floating_point():
            error = relative_error(first[name].cpu(), x)
            assert error < RTOL[dtype], f"{op} {dtype} {sizes}: {name}: error {error:.3g}"
            worst = max(worst, error)
        else:
            assert torch.equal(first[name].cpu(), x), f"{op}: {name}"
    return worst


def seconds(run: Callable[[], Any], repeats: int = 30) -> float:
    """The median time on the device of one call, after a warm-up."""
    for _ in range(5):
        run()
    times = []
    for _ in range(repeats):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        run()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    return statistics.median(times)


def copy_bandwidth() -> float:
    """Bytes per second, read plus written, of a large copy."""
    source = torch.randn(2**28, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.nbytes / seconds(lambda: target.copy_(source))


def matrix_rate() -> float:
    """bfloat16 operations per second of a large matrix product."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return 2 * 8192**3 / seconds(lambda: a @ b)


LARGE: dict[str, dict[str, Any]] = {
    "cema": {"dim": 4096, "ndim": 16, "tokens": Tokens(1, 32768), "state": False},
    "timestep_norm": {"groups": 64, "width": 64, "tokens": Tokens(1, 32768), "state": False},
    "rms_norm": {"shape": (32768, 4096)},
    "layer_norm": {"shape": (32768, 4096)},
    "add_layer_norm": {"shape": (32768, 4096)},
    "silu_mul": {"shape": (32768, 4096)},
    "two_hop_residual": {"shape": (32768, 4096)},
    "normalized_attention": {
        "heads": 4,
        "key_dim": 256,
        "value_dim": 2048,
        "chunk_size": 4096,
        "tokens": Tokens(1, 4096),
    },
}


def timed(op: str, bandwidth: float) -> dict[str, float]:
    """Seconds of forward and of the explicit backward, and those of moving their tensors once."""
    call = moved(example(op, torch.bfloat16, **LARGE[op]), Tensor.cuda)
    arguments = call.arguments()
    operator = getattr(ops, op)
    outputs = TORCH.forward(call)
    dy = torch.randn_like(outputs["y"])
    given = (dy, None) if op in SEQUENCE_OPERATORS else dy
    read = sum(x.nbytes for x in call.inputs.values() if x is not None)
    return {
        "forward": seconds(lambda: operator(**arguments)),
        "forward floor": (read + outputs["y"].nbytes) / bandwidth,
        "backward": seconds(lambda: operator.backward(given, **arguments)),
        "backward floor": (2 * read + dy.nbytes) / bandwidth,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    print(f"{cuda.status()}, torch {torch.__version__}")
    for op in OPERATORS:
        cases = [{"tokens": tokens} for tokens in TOKENS] if op in SEQUENCE_OPERATORS else [{}]
        for dtype in RTOL:
            worst = max(check(op, dtype, sizes) for sizes in cases)
            print(f"{op:<22}{dtype!s:<16}error {worst:.2e}", flush=True)
    bandwidth, rate = copy_bandwidth(), matrix_rate()
    print(f"copy {bandwidth / 1e9:.0f} GB/s, bfloat16 matrix product {rate / 1e12:.0f} Tflop/s")
    results = {op: timed(op, bandwidth) for op in LARGE}
    print(f"{'operator':<22}{'forward':>12}{'of floor':>10}{'backward':>12}{'of floor':>10}")
    for op, times in results.items():
        row = "".join(
            f"{1e3 * times[name]:>9.3f} ms{times[name] / times[f'{name} floor']:>10.2f}"
            for name in ("forward", "backward")
        )
        print(f"{op:<22}{row}")
    if arguments.output:
        ceilings = {"copy": bandwidth, "matrix product": rate}
        arguments.output.write_text(json.dumps({"ceilings": ceilings, "seconds": results}, indent=2))


if __name__ == "__main__":
    main()
