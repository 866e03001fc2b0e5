"""Peers beside eager PyTorch: torch.compile of the same functions, and megalodon-jax, jitted.

Each is used where its machinery is installed; `absent` says in one line what is missing.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from megalodon_core.bench.harness import MakeSide, Side, torch_side
from megalodon_core.bench.operators import Case, Size, Tensors


def available() -> tuple[dict[str, MakeSide], list[str]]:
    """The peers that can run here, and a line for each that cannot."""
    peers: dict[str, MakeSide] = {}
    absent = []
    lacking = what_the_compiler_lacks()
    if lacking is None:
        peers["compiled"] = compiled
    else:
        absent.append(f"torch.compile: not measured, there is no {lacking}")
    if importlib.util.find_spec("megalodon_jax"):
        peers["jax"] = jax_side
    else:
        absent.append("megalodon-jax: not measured, not installed (pip install 'megalodon-core[peers]')")
    return peers, absent


def what_the_compiler_lacks() -> str | None:
    """What torch.compile needs on the default device and does not find."""
    if torch.get_default_device().type == "cuda":
        return None if importlib.util.find_spec("triton") else "triton"
    compiler = os.environ.get("CXX", "g++")
    return None if shutil.which(compiler) else f"C++ compiler ({compiler})"


def compiled(case: Case, size: Size, inputs: Tensors, cotangents: Tensors) -> Side | None:
    """The eager peer under torch.compile; it compiles when results are compared, not when they are timed."""
    if _is_wide(case, inputs):
        return None
    torch._dynamo.config.recompile_limit = 64  # peers share code, which is compiled for each type and mode
    warnings.filterwarnings("ignore", message=".*does not support code generation for complex.*")
    function = torch.compile(case.peer(size), dynamic=False)
    return torch_side(function, case.peer_inputs(*inputs), cotangents, case.differentiable)


def _is_wide(case: Case, inputs: Tensors) -> bool:
    """Whether an FFT would compute in float32 for 16-bit activations: a CPU's float32 row tells it all."""
    return inputs[0].is_cpu and case.operator in ("cema", "ema") and inputs[0].dtype != torch.float32


def jax_side(case: Case, size: Size, inputs: Tensors, cotangents: Tensors) -> Side | None:
    """megalodon-jax's layer of the same formula, jitted; its layers' RoPE and FFT are its own.

    Gradients of cema's coefficients are computed in its own variables (alpha, delta, theta), so they are
    timed and not compared.
    """
    make = _LAYERS.get(case.name)
    if make is None or _is_wide(case, inputs):
        return None
    os.environ.setdefault("JAX_PLATFORMS", torch.get_default_device().type)
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # leaves torch its memory
    import jax

    arrays = [_to_jax(x) for x in inputs]
    function, variables, compared = make(size, *arrays)
    forward = jax.jit(function)

    def both(cotangent: Any, *variables: Any) -> Any:
        y, backward = jax.vjp(function, *variables)
        return y, backward(cotangent)

    training, dy = jax.jit(both), _to_jax(cotangents[0])

    def results() -> list[torch.Tensor | None]:
        y, gradients = training(dy, *variables)
        known = [_to_torch(g) if same else None for g, same in zip(gradients, compared, strict=True)]
        return [_to_torch(forward(*variables)), _to_torch(y), *known]

    def timed(part: str, call: Callable[..., Any], *arguments: Any) -> Callable[[], dict[str, float]]:
        def sample() -> dict[str, float]:
            begin = time.perf_counter()
            jax.block_until_ready(call(*arguments))
            return {part: time.perf_counter() - begin}

        return sample

    return Side(results, (timed("forward", forward, *variables), timed("both", training, dy, *variables)))


def _to_jax(x: torch.Tensor) -> Any:
    import jax.numpy as jnp

    wide = jnp.asarray(x.detach().float().cpu().numpy())
    return wide.astype(jnp.bfloat16) if x.dtype == torch.bfloat16 else wide


def _to_torch(x: Any) -> torch.Tensor:
    import numpy as np

    return torch.from_numpy(np.array(x.astype(np.float32))).to(torch.get_default_device())


def _cema(size: Size, x: Any, p: Any, q: Any, gamma: Any, omega: Any) -> Any:
    import equinox as eqx
    import jax
    import jax.numpy as jnp
    from megalodon_jax.layers import ComplexEMA

    n = size.ndim
    logit = jax.scipy.special.logit
    magnitude = jnp.hypot(q[..., 0], q[..., 1])
    angle = jnp.arctan2(q[:, 0, 1], q[:, 0, 0]) % (2 * jnp.pi)
    alpha, delta, theta = logit(p), logit((1 - magnitude) / p), logit(angle * n / (2 * jnp.pi))
    layer = ComplexEMA(size.dim, n, key=jax.random.PRNGKey(0))

    def function(x: Any, alpha: Any, delta: Any, gamma: Any, omega: Any) -> Any:
        filled = eqx.tree_at(
            lambda m: (m.alpha, m.delta, m.theta, m.gamma_real, m.gamma_imag, m.omega),
            layer,
            (
                alpha[..., None],
                delta[..., None],
                theta[:, None, None],
                gamma[..., 0] * n**0.5,
                gamma[..., 1] * n**0.5,
                omega,
            ),
        )
        return filled(x.swapaxes(1, 2))[0].swapaxes(1, 2)

    return function, (x, alpha, delta, gamma, omega), (True, False, False, True, True)


def _timestep_norm(size: Size, x: Any, weight: Any, bias: Any) -> Any:
    import equinox as eqx
    from megalodon_jax.layers import TimestepNorm

    layer = TimestepNorm(size.dim, size.groups)

    def function(x: Any, weight: Any, bias: Any) -> Any:
        return eqx.tree_at(lambda m: (m.weight, m.bias), layer, (weight - 1, bias))(x)[0]

    return function, (x, weight, bias), (True, True, True)


def _rms_norm(size: Size, x: Any, weight: Any) -> Any:
    import equinox as eqx
    from megalodon_jax.layers import RMSNorm

    layer = RMSNorm(size.dim, eps=1e-5)

    def function(x: Any, weight: Any) -> Any:
        return eqx.tree_at(lambda m: m.gamma, layer, weight - 1)(x)

    return function, (x, weight), (True, True)


def _normalized_attention(size: Size, z: Any, gamma: Any, beta: Any, v: Any) -> Any:
    import jax
    import jax.numpy as jnp
    from megalodon_jax.layers import ChunkedAttention

    layer = ChunkedAttention(size.heads, size.z_dim, size.value_dim, size.chunk_size)

    def function(z: Any, gamma: Any, beta: Any, v: Any) -> Any:
        wide = z.astype(jnp.float32)
        normed = wide * jax.lax.rsqrt(jnp.mean(wide * wide, -1, keepdims=True) + 1e-5)
        q, k = ((normed * gamma[i] + beta[i]).astype(z.dtype) for i in range(2))
        return layer(q, k, v)[0]

    return function, (z, gamma, beta, v), (True,) * 4


def _chunk_attention(size: Size, q: Any, k: Any, v: Any) -> Any:
    from megalodon_jax.layers import attention_single_chunk

    def function(q: Any, k: Any, v: Any) -> Any:
        chunks = [t.reshape(-1, size.chunk_size, *t.shape[2:]) for t in (q, k, v)]
        return attention_single_chunk(*chunks).reshape(v.shape)

    return function, (q, k, v), (True, True, True)


_LAYERS: dict[str, Callable[..., Any]] = {
    "cema": _cema,
    "timestep_norm": _timestep_norm,
    "rms_norm": _rms_norm,
    "normalized_attention": _normalized_attention,
    "chunk_attention": _chunk_attention,
}
