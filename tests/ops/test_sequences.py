"""What holds for every sequence operator: splitting, packing and padding do not change the numbers."""

import math
from itertools import pairwise

import pytest
import torch
from calls import ACTIVATIONS, SEQUENCE_OPERATORS, STATES, Call, Tokens, cotangents, example
from frontends import Arrays
from hypothesis import given
from hypothesis import strategies as st
from strategies import batches, calls, packed, padded
from tolerance import assert_all_close, assert_bitwise_equal
from torch import Tensor

RTOL = {torch.float64: 1e-10, torch.float32: 2e-5, torch.bfloat16: 2e-2}
"""Two orders of the same sums; y and the gradients of activations are rounded to their type in both."""

dtypes = st.sampled_from(list(RTOL))
pytestmark = pytest.mark.parametrize("op", SEQUENCE_OPERATORS)


@given(data=st.data(), dtype=dtypes)
def test_any_split_equals_the_whole(op, frontend, data, dtype):
    call = data.draw(calls(op, dtype, (batches | padded).filter(lambda tokens: tokens.length > 1)))
    length = call.inputs[ACTIVATIONS[op][0]].shape[1]
    cut = data.draw(st.integers(1, length - 1))
    drawn = cotangents(frontend.forward(call))
    whole = frontend.run(call, drawn)

    first = call.with_tokens(lambda x: x[:, :cut])
    second = call.with_tokens(lambda x: x[:, cut:]).with_state(frontend.forward(first))
    after = frontend.run(second, drawn | {"y": drawn["y"][:, cut:]})
    through_state = {output: after.gradients[name] for name, output in STATES[op].items() if output in drawn}
    before = frontend.run(first, through_state | {"y": drawn["y"][:, :cut]})

    y = torch.cat((before.outputs["y"], after.outputs["y"]), 1)
    assert_all_close(after.outputs | {"y": y}, whole.outputs, RTOL[dtype])
    gradients = before.gradients | joined(call, [before.gradients, after.gradients])
    assert_all_close(gradients, whole.gradients, RTOL[dtype])


@given(data=st.data(), dtype=dtypes)
def test_packed_equals_separate(op, frontend, data, dtype):
    call = data.draw(calls(op, dtype, packed.filter(lambda tokens: all(tokens.documents))))
    drawn = cotangents(frontend.forward(call))
    whole = frontend.run(call, drawn)

    parts = []
    for row, (begin, end) in enumerate(pairwise(call.options["cu_seqlens"].tolist())):
        one = slice(row, row + 1)
        part = call.with_tokens(lambda x, begin=begin, end=end: x[:, begin:end]).with_options(cu_seqlens=None)
        part = part.with_rows(one)
        state = {name: x for name, x in frontend.forward(part).items() if name in drawn and name != "y"}
        weights = {name: with_capacity(drawn[name][one], x) for name, x in state.items()}
        parts.append(frontend.run(part, weights | {"y": drawn["y"][:, begin:end]}))

    outputs = {
        name: torch.cat([with_capacity(part.outputs[name], x) for part in parts])
        for name, x in whole.outputs.items()
        if name != "y"
    }
    outputs["y"] = torch.cat([part.outputs["y"] for part in parts], 1)
    assert_all_close(outputs, whole.outputs, RTOL[dtype])
    gradients = joined(call, [part.gradients for part in parts])
    states = {
        name: [part.gradients[name] for part in parts] for name in STATES[op] if name in whole.gradients
    }
    gradients |= {name: None if x[0] is None else torch.cat(x) for name, x in states.items()}
    assert_all_close(gradients, whole.gradients, RTOL[dtype])


@given(data=st.data(), dtype=dtypes)
def test_no_gradient_crosses_a_boundary(op, frontend, data, dtype):
    call = data.draw(calls(op, dtype, packed))
    bounds = call.options["cu_seqlens"]
    row = data.draw(st.integers(0, len(bounds) - 2))
    begin, end = bounds[row], bounds[row + 1]
    drawn = cotangents(frontend.forward(call))
    only = {name: torch.zeros_like(x) for name, x in drawn.items()}
    for name, x in drawn.items():
        here = (slice(None), slice(begin, end)) if name == "y" else row
        only[name][here] = x[here]

    gradients = frontend.run(call, only).gradients
    for name in ACTIVATIONS[op]:
        assert not gradients[name][:, :begin].any(), name
        assert not gradients[name][:, end:].any(), name
    for name in STATES[op]:
        if gradients.get(name) is not None:
            assert not gradients[name][:row].any(), name
            assert not gradients[name][row + 1 :].any(), name


@given(data=st.data(), dtype=dtypes)
def test_an_empty_document_returns_its_state_and_changes_no_other(op, frontend, data, dtype):
    call = data.draw(calls(op, dtype, packed.filter(lambda tokens: not all(tokens.documents))))
    bounds = call.options["cu_seqlens"]
    full = bounds.diff() > 0
    drawn = cotangents(frontend.forward(call))
    outputs, gradients = frontend.run(call, drawn)
    rest = call.with_rows(full).with_options(cu_seqlens=bounds.unique())
    expected = frontend.run(rest, rows_of(drawn, full))

    assert_all_close(rows_of(outputs, full), expected.outputs, RTOL[dtype])
    kept = {name: x[full] for name, x in gradients.items() if name in STATES[op] and x is not None}
    assert_all_close(gradients | kept, expected.gradients, RTOL[dtype])
    assert_state_passed_through(call, outputs, gradients, drawn, ~full)


@given(data=st.data(), dtype=dtypes)
def test_padding_anywhere_equals_removing_it(op, frontend, data, dtype):
    call = data.draw(calls(op, dtype, padded).filter(lambda call: not call.options["padding_mask"].all()))
    padding = call.options["padding_mask"]
    bounds = torch.cat((torch.zeros(1, dtype=torch.int64), (~padding).sum(1).cumsum(0)))
    removed = call.with_tokens(lambda x: x[~padding][None]).with_options(padding_mask=None, cu_seqlens=bounds)
    state = {name: x for name, x in frontend.forward(removed).items() if name != "y"}
    drawn = cotangents(frontend.forward(call))
    weights = {name: with_capacity(drawn[name], x) for name, x in state.items() if name in drawn}
    expected = frontend.run(removed, weights | {"y": drawn["y"][~padding][None]})

    # What stands at a padded position does not matter, not even NaN.
    call = call.with_tokens(lambda x: x if x is padding else with_nan(x, padding))
    outputs, gradients = frontend.run(call, drawn | {"y": with_nan(drawn["y"], padding)})
    assert not outputs["y"][padding].any()
    state = {name: with_capacity(x, outputs[name]) for name, x in expected.outputs.items() if name != "y"}
    outputs = outputs | {"y": outputs["y"][~padding][None]}
    assert_all_close(outputs, expected.outputs | state, RTOL[dtype])
    for name in ACTIVATIONS[op]:
        assert not gradients[name][padding].any(), name
    tokens = {name: gradients[name][~padding][None] for name in ACTIVATIONS[op]}
    assert_all_close(gradients | tokens, expected.gradients, RTOL[dtype])


@given(data=st.data(), dtype=dtypes)
def test_nothing_but_padding_returns_the_state(op, frontend, data, dtype):
    call = data.draw(calls(op, dtype, padded))
    call = call.with_options(padding_mask=torch.ones_like(call.options["padding_mask"]))
    drawn = cotangents(frontend.forward(call))
    outputs, gradients = frontend.run(call, drawn)
    assert not outputs["y"].any()
    assert_state_passed_through(call, outputs, gradients, drawn, slice(None))
    for name, x in gradients.items():
        assert x is None or name in STATES[op] or not x.any(), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_stride_of_a_single_token_means_nothing(op, frontend, dtype):
    """Arrays (B, 1, ...) whose axis of time has the stride of the whole batch, with padding in some rows."""

    def time_major(x: Tensor) -> Tensor:
        first = x.new_empty((1, x.shape[0], *x.shape[2:]))
        return first.copy_(x.transpose(0, 1)).transpose(0, 1)

    call = example(op, dtype, tokens=Tokens(batch=4, length=1))
    call = call.with_options(padding_mask=torch.tensor([[True], [False], [True], [False]]))
    drawn = cotangents(frontend.forward(call))
    odd = call.with_inputs(**{name: time_major(call.inputs[name]) for name in ACTIVATIONS[op]})
    assert all(odd.inputs[name].stride(1) > odd.inputs[name].stride(0) for name in ACTIVATIONS[op])
    expected, result = frontend.run(call, drawn), frontend.run(odd, drawn | {"y": time_major(drawn["y"])})
    assert_bitwise_equal(result.outputs, expected.outputs)
    assert_bitwise_equal(result.gradients, expected.gradients)


def joined(call: Call, parts: list[Arrays]) -> Arrays:
    """Gradients of parts of one run as those of the run: tokens one after another, parameters summed."""
    gradients: Arrays = {}
    for name in call.inputs.keys() - STATES[call.op].keys():
        x = [part[name] for part in parts]
        if name in ACTIVATIONS[call.op]:
            gradients[name] = torch.cat(x, 1)
        else:
            gradients[name] = None if x[0] is None else torch.stack(x).sum(0)
    return gradients


def rows_of(arrays: Arrays, rows: Tensor) -> Arrays:
    """Outputs or their cotangents with these rows of the state only."""
    return {name: x if name == "y" else x[rows] for name, x in arrays.items()}


def with_capacity(x: Tensor, like: Tensor) -> Tensor:
    """An attention state (rows, P, H, D) cut or filled with zeros to the P of `like`; others as they are."""
    if x.ndim < 4 or x.shape[1] == like.shape[1]:
        return x
    missing = max(like.shape[1] - x.shape[1], 0)
    return torch.nn.functional.pad(x, (0, 0, 0, 0, 0, missing))[:, : like.shape[1]]


def with_nan(x: Tensor, padding: Tensor) -> Tensor:
    return x.masked_fill(padding.view(*padding.shape, *[1] * (x.ndim - 2)), math.nan)


def assert_state_passed_through(
    call: Call, outputs: Arrays, gradients: Arrays, drawn: Arrays, rows: Tensor | slice
) -> None:
    """In `rows` the state is bitwise the initial one, and so is its gradient the cotangent of the state."""
    for name, output in STATES[call.op].items():
        state, initial = outputs[output][rows], call.state()[output]
        if initial is None:
            initial = torch.ones_like(state) if output == "var" else torch.zeros_like(state)
            assert torch.equal(state, initial), output
            continue
        assert torch.equal(state, with_capacity(initial[rows], state)), output
        if output in drawn:
            # An empty slot of an attention state is not a variable: its gradient is zero.
            filled = initial[rows] != 0
            cotangent = with_capacity(drawn[output][rows], initial[rows])
            assert torch.equal(gradients[name][rows], cotangent * filled), name
