"""Splitting a stream, packing documents and padding rows change nothing but the rounding."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerance import relative_error

EXACT = 1e-10


@pytest.fixture
def model(tiny):
    return tiny(dtype=torch.float64).eval()


def assert_same_state(actual, expected):
    for ours, theirs in zip(actual.tensors(), expected.tensors(), strict=True):
        assert relative_error(ours.double(), theirs.double()) < EXACT


@pytest.mark.parametrize("split", range(1, 13))
def test_every_split_equals_the_whole(model, tokens, split):
    whole, end = model(tokens)
    head, state = model(tokens[:, :split])
    tail, split_end = model(tokens[:, split:], state)
    assert relative_error(torch.cat((head, tail), dim=1), whole) < EXACT
    assert_same_state(split_end, end)


def test_gradients_through_the_state_equal_the_whole(model, tokens):
    def gradients(logits):
        model.zero_grad()
        logits.square().sum().backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    expected = gradients(model(tokens)[0])
    head, state = model(tokens[:, :4])
    tail, _ = model(tokens[:, 4:], state)
    for ours, theirs in zip(gradients(torch.cat((head, tail), dim=1)), expected, strict=True):
        assert relative_error(ours, theirs) < 1e-8

    head, state = model(tokens[:, :4])
    tail, _ = model(tokens[:, 4:], state.detach())
    assert relative_error(gradients(torch.cat((head, tail), dim=1))[0], expected[0]) > 1e-4


def test_state_has_a_constant_size(model):
    tokens = torch.arange(120).remainder(19).view(1, -1)
    sizes, state = [], None
    with torch.no_grad():
        for start in range(0, 120, 8):
            _, state = model(tokens[:, start : start + 8], state)
            sizes.append([tensor.shape for tensor in state.tensors()])
    assert all(size == sizes[0] for size in sizes)
    assert state.nbytes == sum(tensor.nbytes for tensor in state.tensors())
    assert state.num_rows == 1


def test_a_donated_state_gives_the_same_stream(model, tokens):
    """Token by token; the keys and values of the chunk stay in the memory they first got."""
    with torch.no_grad():
        expected, _ = model(tokens)
        _, state = model(tokens[:, :1], donate_state=True)
        memory = [layer.attention.k.data_ptr() for layer in state.layers]
        for position in range(1, tokens.shape[1]):
            logits, state = model(tokens[:, position : position + 1], state, donate_state=True)
            assert relative_error(logits, expected[:, position : position + 1]) < EXACT
    assert [layer.attention.k.data_ptr() for layer in state.layers] == memory


def test_state_selects_rows(model, tokens):
    _, state = model(tokens)
    swapped, _ = model(tokens[:, :3].flip(0), state.select([1, 0]))
    assert relative_error(swapped.flip(0), model(tokens[:, :3], state)[0]) < EXACT


@pytest.mark.parametrize("lengths", [(13,), (5, 8), (1, 10, 2), (6, 0, 7), (0, 13)])
def test_packed_documents_equal_separate_ones(model, lengths):
    documents = [torch.randint(19, (1, length)) for length in lengths]
    boundaries = torch.tensor([0, *lengths]).cumsum(0)
    packed, state = model(torch.cat(documents, dim=1), cu_seqlens=boundaries)
    assert state.num_rows == len(lengths)
    more = [torch.randint(19, (1, 3)) for _ in lengths]
    boundaries_of_more = torch.arange(len(lengths) + 1) * 3
    continued, _ = model(torch.cat(more, dim=1), state, cu_seqlens=boundaries_of_more)
    for index, document in enumerate(documents):
        alone = None
        if document.numel():
            expected, alone = model(document)
            assert relative_error(packed[:, boundaries[index] : boundaries[index + 1]], expected) < EXACT
        expected, _ = model(more[index], alone)
        assert relative_error(continued[:, 3 * index : 3 * index + 3], expected) < EXACT


def test_no_gradient_crosses_a_document_boundary(model):
    first, second = torch.arange(6).view(1, -1), torch.arange(10, 17).view(1, -1)
    logits, _ = model(torch.cat((first, second), dim=1), cu_seqlens=torch.tensor([0, 6, 13]))
    logits[:, 6:].square().sum().backward()
    assert not model.embed.weight.grad[:6].any()
    assert model.embed.weight.grad[10:17].any(dim=1).all()


@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_padding_anywhere_equals_removing_it(tiny, data):
    model = tiny(dtype=torch.float64).eval()
    length = data.draw(st.integers(1, 12))
    row = st.lists(st.booleans(), min_size=length, max_size=length)
    rows = data.draw(st.lists(row, min_size=1, max_size=2))
    mask = torch.tensor(rows)
    tokens = torch.randint(19, mask.shape)
    padded, state = model(tokens, padding_mask=mask)
    following = torch.randint(19, (len(rows), 2))
    continued, _ = model(following, state)
    assert not padded[mask].any()
    for row in range(len(rows)):
        kept, alone = tokens[row : row + 1, ~mask[row]], None
        if kept.numel():
            expected, alone = model(kept)
            assert relative_error(padded[row][~mask[row]], expected[0]) < EXACT
        expected, _ = model(following[row : row + 1], alone)
        assert relative_error(continued[row], expected[0]) < EXACT


def test_padded_tokens_have_no_gradient(model):
    tokens = torch.tensor([[3, 3, 0, 1, 3, 2]])
    logits, _ = model(tokens, padding_mask=tokens == 3)
    logits.square().sum().backward()
    assert not model.embed.weight.grad[3].any()
    assert torch.isfinite(model.embed.weight.grad).all()


def test_logits_to_keep(model, tokens):
    whole, end = model(tokens)
    last, state = model(tokens, logits_to_keep=2)
    assert relative_error(last, whole[:, -2:]) < EXACT
    assert_same_state(state, end)


def test_no_state_on_request(model, tokens):
    assert model(tokens, return_state=False)[1] is None
