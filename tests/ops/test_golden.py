"""Outputs and gradients of the sequence operators against the golden files, at 1e-10 in float64."""

import pytest
from calls import Call
from frontends import Result
from golden import golden_files, load_golden
from tolerance import GOLDEN, assert_close


def by_name(pattern: str):
    return pytest.mark.parametrize("path", golden_files(pattern), ids=lambda path: path.stem)


def assert_matches(golden: dict, result: Result, names: dict[str, str], prefix: str = "") -> None:
    """Every output under `prefix` + its golden name, every gradient under `prefix` + d_ + its golden name."""
    for name, x in result.outputs.items():
        if prefix + names.get(name, name) in golden:
            assert_close(x, golden[prefix + names.get(name, name)], GOLDEN, name)
    for name, x in result.gradients.items():
        if x is not None:
            assert_close(x, golden[f"{prefix}d_{names.get(name, name)}"], GOLDEN, f"d{name}")


CEMA = {"initial_state": "h0", "state": "h"}


@by_name("cema_*.npz")
def test_cema(path, frontend):
    golden = load_golden(path)
    inputs = {name: golden[name] for name in ("x", "p", "q", "gamma", "omega")}
    call = Call("cema", inputs | {"initial_state": golden.get("h0")})
    result = frontend.run(call, {"y": golden["dy"], "state": golden["dh"]})
    assert_matches(golden, result, CEMA)


@by_name("packed_*.npz")
def test_packed_cema(path, frontend):
    golden = load_golden(path)
    inputs = {name: golden[name] for name in ("x", "p", "q", "gamma", "omega")}
    call = Call("cema", inputs | {"initial_state": golden["h0"]}, {"cu_seqlens": golden["cu_seqlens"]})
    result = frontend.run(call, {"y": golden["cema_dy"], "state": golden["cema_dh"]})
    assert_matches(golden, result, CEMA, "cema_")


TIMESTEP_NORM = {"initial_mean": "mean0", "initial_var": "var0"}


@by_name("timestep_norm_*.npz")
def test_timestep_norm(path, frontend):
    golden = load_golden(path)
    inputs = {name: golden[name] for name in ("x", "weight", "bias")}
    inputs |= {"initial_mean": golden["mean0"], "initial_var": golden["var0"]}
    options = {"num_groups": golden["num_groups"].item(), "eps": golden["eps"].item()}
    options |= {"initial_count": golden["count0"], "padding_mask": golden.get("padding_mask")}
    call = Call("timestep_norm", inputs, options)
    result = frontend.run(call, {"y": golden["dy"], "mean": golden["d_mean"], "var": golden["d_var"]})
    assert_matches(golden, result, TIMESTEP_NORM)


@by_name("packed_*.npz")
def test_packed_timestep_norm(path, frontend):
    golden = load_golden(path)
    inputs = {name: golden[name] for name in ("x", "weight", "bias")}
    options = {"num_groups": golden["num_groups"].item(), "eps": golden["eps"].item()}
    options |= {"cu_seqlens": golden["cu_seqlens"], "initial_count": None}
    call = Call("timestep_norm", inputs | {"initial_mean": None, "initial_var": None}, options)
    result = frontend.run(call, {"y": golden["norm_dy"]})
    assert_matches(golden, result, TIMESTEP_NORM, "norm_")


@by_name("attention_*.npz")
def test_normalized_attention(path, frontend):
    golden = load_golden(path)
    inputs = {name: golden[name] for name in ("z", "gamma", "beta", "v")}
    options = {name: golden[name].item() for name in ("chunk_size", "rope_base", "eps")}
    options |= {"cu_seqlens": golden.get("cu_seqlens"), "initial_length": None}
    call = Call("normalized_attention", inputs | {"initial_k": None, "initial_v": None}, options)
    result = frontend.run(call, {"y": golden["dy"]})
    golden = {name: x for name, x in golden.items() if name != "v"}  # the input v, not the state's
    assert_matches(golden, result, {})
