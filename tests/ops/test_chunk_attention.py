"""Chunk attention: states, extreme scores, and which scores dropout removes."""

import math

import pytest
import torch
from calls import ACTIVATIONS, STATES, Call, Tokens, cotangents, example
from frontends import REFERENCE, TORCH, to_numpy
from megalodon_core import ops
from reference.philox import dropped, philox4x32
from tolerance import assert_all_close, assert_bitwise_equal, assert_close
from torch import Tensor

RTOL = {torch.float64: 1e-10, torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}

both = pytest.mark.parametrize("op", ["chunk_attention", "normalized_attention"])


@both
@pytest.mark.parametrize(("before", "tokens"), [(None, 3), (None, 4), (None, 9), (0, 2), (4, 1), (4, 7)])
def test_a_state_holds_the_unfinished_chunk(op, frontend, before, tokens):
    """Capacity min(c - 1, P + L), here with c = 5; slots past the length are zeros."""
    call = example(op, torch.float32, tokens=Tokens(length=tokens), chunk_size=5, capacity=before)
    state = frontend.forward(call)
    filled = 0 if before is None else call.options["initial_length"]
    length = (filled + torch.tensor([tokens, tokens])) % 5
    assert torch.equal(state["length"], length)
    capacity = min(4, (before or 0) + tokens)
    empty = torch.arange(capacity) >= length[:, None]
    for name, dim in (("k", 4), ("v", 6)):
        assert state[name].shape == (2, capacity, 2, dim)
        assert not state[name][empty].any()
        assert state[name][~empty].all()


@both
def test_an_empty_state_of_full_capacity_is_none(op, frontend, dtype):
    """So a stream can have constant shapes from its first call on."""
    call = example(op, dtype, chunk_size=5)
    empty = example(op, dtype, chunk_size=5, capacity=4).state()
    stated = call.with_state({name: torch.zeros_like(x) for name, x in empty.items()})
    assert_bitwise_equal(frontend.forward(stated), frontend.forward(call))


def test_equal_scores_of_any_size_share_alike(frontend, dtype):
    """Scores of 1e4 and of -1e4, whose exp no type holds, are a mean over the values."""
    call = example("chunk_attention", dtype, scale=1.0, key_dim=4)
    k = torch.full_like(call.inputs["k"], 50)
    k[:, :, 1] = -50
    call = call.with_inputs(q=torch.full_like(k, 50), k=k)
    rtol = 8 * torch.finfo(dtype).eps
    drawn = cotangents(frontend.forward(call))
    result, expected = frontend.run(call, drawn), REFERENCE.run(call, drawn)
    assert_close(result.outputs["y"], expected.outputs["y"], rtol, "y")
    assert_close(result.gradients["v"], expected.gradients["v"], rtol, "dv")
    assert result.gradients["q"].isfinite().all()
    assert result.gradients["k"].isfinite().all()


@both
def test_huge_scores_do_not_overflow(op, frontend, dtype):
    """Scores spread over +-1e4: y stays a mean of values, and gradients stay finite."""
    call = example(op, dtype, chunk_size=64)
    big = {"gamma": 50.0} if op == "normalized_attention" else {"q": 50.0, "k": 50.0}
    call = call.with_inputs(**{name: x * call.inputs[name] for name, x in big.items()})
    drawn = cotangents(frontend.forward(call))
    result = frontend.run(call, drawn)
    bound = call.inputs["v"].abs().amax(1, keepdim=True) * (1 + 4 * torch.finfo(dtype).eps)
    assert (result.outputs["y"].abs() <= bound).all()
    for name, x in result.gradients.items():
        assert x is None or x.isfinite().all(), name


@both
@pytest.mark.parametrize(
    ("at", "bad", "chunk"),
    [(0, math.nan, 100), (41, math.nan, 100), (42, math.inf, 100), (99, math.inf, 100), (150, math.nan, 200)],
)
def test_a_position_reaches_only_what_depends_on_it(op, frontend, dtype, at, bad, chunk):
    """Everything else is bit for bit what it is without NaN or inf there: in the inputs, then in dy."""
    call = example(op, dtype, tokens=Tokens(batch=1, length=chunk + 50), chunk_size=chunk, value_dim=51)
    drawn = cotangents(frontend.forward(call))
    expected = frontend.run(call, drawn)

    poisoned = call.with_inputs(**{x: put(call.inputs[x], at, bad) for x in ACTIVATIONS[op]})
    result = frontend.run(poisoned, drawn)
    assert not result.outputs["y"][:, at].isfinite().any()
    assert torch.equal(result.outputs["y"][:, :at], expected.outputs["y"][:, :at])
    assert torch.equal(result.outputs["y"][:, chunk:], expected.outputs["y"][:, chunk:])
    for name in ACTIVATIONS[op]:
        gradient, clean = result.gradients[name], expected.gradients[name]
        assert torch.equal(gradient[:, chunk:], clean[:, chunk:]), name
        assert name != "q" or torch.equal(gradient[:, :at], clean[:, :at])

    result = frontend.run(call, drawn | {"y": put(drawn["y"], at, bad)})
    assert not result.gradients["v"][:, : at + 1].isfinite().any()
    for name in ACTIVATIONS[op]:
        gradient, clean = result.gradients[name], expected.gradients[name]
        assert torch.equal(gradient[:, at + 1 :], clean[:, at + 1 :]), name
        assert name != "q" or torch.equal(gradient[:, :at], clean[:, :at])


def put(x: Tensor, at: int, value: float) -> Tensor:
    """A copy with `value` in all of token `at`."""
    x = x.clone()
    x[:, at] = value
    return x


def kept(
    frontend, tokens: int, chunk_size: int, p: float, seed: int, batch: int = 1, heads: int = 1
) -> Tensor:
    """Which keys each query saw (B, H, L, L): with equal scores and one-hot values, y is not 0 for those."""
    call = example(
        "chunk_attention",
        torch.float32,
        tokens=Tokens(batch, tokens),
        heads=heads,
        value_dim=tokens,
        chunk_size=chunk_size,
    )
    q, v = torch.zeros_like(call.inputs["q"]), torch.eye(tokens)[:, None].expand(batch, -1, heads, -1)
    call = call.with_inputs(q=q, k=q, v=v).with_options(dropout_p=p, seed=seed)
    return frontend.forward(call)["y"].transpose(1, 2) > 0


def test_philox_gives_its_published_vectors():
    """The known answers of the authors' Random123 library for Philox4x32-10."""
    ones, pi = 0xFFFFFFFF, (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)
    assert philox4x32((0, 0, 0, 0), (0, 0)) == (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)
    assert philox4x32((ones,) * 4, (ones, ones)) == (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)
    assert philox4x32(pi, (0xA4093822, 0x299F31D0)) == (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)


@pytest.mark.parametrize("seed", [0, 1, 2**32, 2**63 - 1])
def test_dropout_removes_what_philox_says(frontend, seed):
    seen = kept(frontend, tokens=13, chunk_size=8, p=0.5, seed=seed, batch=2, heads=2)
    expected = torch.zeros_like(seen)
    for row, head, t, s in torch.cartesian_prod(*map(torch.arange, seen.shape)).tolist():
        causal = t - t % 8 <= s <= t
        expected[row, head, t, s] = causal and not dropped(seed, 0.5, row, head, t, s)
    assert torch.equal(seen, expected)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_removes_its_share(frontend, p):
    """Of 2 * 3 * 128 * 129 / 2 scores, within five standard deviations."""
    seen = kept(frontend, tokens=128, chunk_size=128, p=p, seed=7, batch=2, heads=3)
    scores = 2 * 3 * 128 * 129 // 2
    share = 1 - seen.sum().item() / scores
    assert abs(share - p) < 5 * (p * (1 - p) / scores) ** 0.5


def test_dropout_is_a_pattern_per_seed_row_and_head(frontend):
    seen = kept(frontend, tokens=32, chunk_size=32, p=0.5, seed=3, batch=2, heads=2).flatten(0, 1)
    other_seed = kept(frontend, tokens=32, chunk_size=32, p=0.5, seed=3 + 2**32)[0]
    patterns = torch.cat((seen, other_seed)).flatten(1)
    assert len(patterns.unique(dim=0)) == 5


@both
def test_a_query_without_keys_gives_zero_and_has_no_gradient(op, frontend, dtype):
    call = example(op, dtype, tokens=Tokens(batch=2, length=11), chunk_size=4, dropout_p=0.9)
    seed = call.options["seed"]
    alone = torch.tensor(
        [
            [
                [all(dropped(seed, 0.9, b, h, t, s) for s in range(t - t % 4, t + 1)) for h in range(2)]
                for t in range(11)
            ]
            for b in range(2)
        ]
    )
    assert alone.any()
    assert not alone.all()
    drawn = cotangents(frontend.forward(call))
    result = frontend.run(call, {"y": drawn["y"] * alone[..., None]})
    assert not result.outputs["y"][alone].any()
    assert result.outputs["y"][~alone].all()
    for name, x in result.gradients.items():
        assert x is None or not x.any(), name


@both
def test_backward_regenerates_the_pattern(op, frontend):
    """y is linear in v, so <dy, y> = <v, dv> if and only if both directions drop the same scores."""
    call = example(op, torch.float64, tokens=Tokens(length=150), chunk_size=64, dropout_p=0.5)
    drawn = {"y": cotangents(frontend.forward(call))["y"]}
    result = frontend.run(call, drawn)
    assert_close(
        (drawn["y"] * result.outputs["y"]).sum(), (call.inputs["v"] * result.gradients["v"]).sum(), 1e-12
    )


@both
def test_dropout_needs_a_seed(op, frontend):
    with pytest.raises(ValueError, match=f"{op}: seed: expected"):
        frontend.forward(example(op, torch.float32).with_options(dropout_p=0.1))


def test_chunks_are_as_many_as_there_are():
    """More than a group of CUDA's backward holds, which keeps room for full states: these are empty,
    so that every token is alone in its chunk. y is v, and scores have no gradient."""
    sizes = {"heads": 1, "key_dim": 1, "value_dim": 1, "chunk_size": 4001, "capacity": 4000}
    call = example("chunk_attention", torch.bfloat16, tokens=Tokens(batch=45, length=1), **sizes)
    call = call.with_state({name: torch.zeros_like(x) for name, x in call.state().items()})
    drawn = {"y": cotangents(TORCH.forward(call))["y"]}
    result = TORCH.run(call, drawn)
    assert torch.equal(result.outputs["y"], call.inputs["v"])
    assert torch.equal(result.gradients["v"], drawn["y"])
    for name in ("q", "k", "initial_k", "initial_v"):
        assert not result.gradients[name].any(), name


@both
@pytest.mark.parametrize("pieces", [(1,) * 11, (2, 1, 3, 5), (4, 7), (9, 2)], ids=str)
@pytest.mark.parametrize("packed", [False, True])
def test_a_donated_state_is_updated_in_place(op, frontend, dtype, pieces, packed):
    """Piece by piece, with c = 5: y and the state as without donation, in the memory that was given."""
    tokens = Tokens(documents=(11, 11)) if packed else Tokens(length=11)
    call = example(op, dtype, tokens=tokens, chunk_size=5, capacity=4)
    memory = {name: torch.zeros_like(x) for name, x in call.state().items()}
    kept, donated = call.with_state({name: x.clone() for name, x in memory.items()}), call.with_state(memory)
    begin = 0
    for count in pieces:
        part = piece_of(begin, count, packed)
        options = {"cu_seqlens": torch.tensor([0, count, 2 * count])} if packed else {}
        expected = frontend.forward(kept.with_tokens(part).with_options(**options))
        piece, given = donated.with_tokens(part).with_options(**options, donate_state=True), []
        result = frontend.forward(piece, lambda x, given=given: given.append(x) or x)
        assert_bitwise_equal(result, expected)
        names = [name for name, x in (piece.inputs | piece.options).items() if isinstance(x, Tensor)]
        for name, array in zip(names, given, strict=True):
            if name in ("initial_k", "initial_v"):
                assert torch.equal(frontend.back(array), result[STATES[op][name]]), name
        kept, donated = kept.with_state(expected), donated.with_state(result)
        begin += count


def piece_of(begin: int, count: int, packed: bool):
    """Selects tokens [begin, begin + count) of every row, or of each of two packed documents of 11 tokens."""
    if not packed:
        return lambda x: x[:, begin : begin + count]
    return lambda x: torch.cat([x[:, start + begin : start + begin + count] for start in (0, 11)], dim=1)


FILLED = (0, 1, 63, 64, 65, 128, 148, 149)


def one_token(op: str, dtype: torch.dtype, filled: tuple[int, ...], tokens: Tokens, **sizes) -> Call:
    """A call of one token after a state that holds so many keys of a chunk of 150, in memory for 149."""
    call = example(op, dtype, tokens=tokens, chunk_size=150, capacity=149, **sizes)
    length = torch.tensor(filled)
    empty = (torch.arange(149) >= length[:, None])[..., None, None]
    states = {name: torch.randn_like(call.inputs[name]) for name in ("initial_k", "initial_v")}
    states = {name: x.masked_fill(empty, 0) for name, x in states.items()}
    return call.with_inputs(**states).with_options(initial_length=length)


@both
@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("dims", [(4, 6), (12, 40)], ids=str)
def test_one_token_after_any_number_of_keys(op, frontend, dtype, dims, dropout):
    """The last row fills its chunk, so its state is empty afterwards."""
    sizes = {"key_dim": dims[0], "value_dim": dims[1], "dropout_p": dropout}
    call = one_token(op, dtype, FILLED, Tokens(len(FILLED), 1), **sizes)
    expected, result = REFERENCE.forward(call), frontend.forward(call)
    assert_all_close(result, expected, RTOL[dtype])
    memory = call.with_state({name: x.clone() for name, x in call.state().items()})
    donated = frontend.forward(memory.with_options(donate_state=True))
    assert_bitwise_equal(donated, result)
    assert donated["k"].data_ptr() == memory.inputs["initial_k"].data_ptr()


@both
def test_one_token_of_some_rows(op, frontend, dtype):
    """A padded row keeps its state, whatever stands there, and so does an empty document."""
    call = one_token(op, dtype, (64, 149, 149), Tokens(3, 1))
    call = call.with_options(padding_mask=torch.tensor([[True], [True], [False]]))
    assert_all_close(frontend.forward(call), REFERENCE.forward(call), RTOL[dtype])
    call = one_token(op, dtype, (64, 149, 0), Tokens(documents=(0, 1, 0)))
    assert_all_close(frontend.forward(call), REFERENCE.forward(call), RTOL[dtype])


@both
def test_a_donated_state_without_room_is_replaced_by_one_of_full_capacity(op, frontend):
    call = example(op, torch.float32, tokens=Tokens(length=1), chunk_size=7, capacity=2)
    expected = frontend.forward(call)
    result = frontend.forward(call.with_options(donate_state=True))
    assert torch.equal(result["y"], expected["y"])
    for name in ("k", "v"):
        assert result[name].shape[1] == 6
        assert torch.equal(result[name][:, :3], expected[name])
        assert not result[name][:, 3:].any()


@both
def test_a_donated_state_needs_memory_for_keys_and_values(op):
    shared, z, gamma = torch.zeros(2, 2, 1, 8), torch.randn(2, 1, 1, 8), torch.ones(2, 1, 8)
    inputs = (z, z, z) if op == "chunk_attention" else (z, gamma, gamma, z)
    state = (shared, shared, torch.zeros(2, dtype=torch.int64))
    run = getattr(ops, op)
    run(*inputs, chunk_size=3, initial_state=state)
    with pytest.raises(ValueError, match=rf"{op}: initial_state.v: expected memory of its own to donate"):
        run(*inputs, chunk_size=3, initial_state=state, donate_state=True)


@both
def test_a_donation_beside_a_gradient_is_not_used(op):
    call = example(op, torch.float32, tokens=Tokens(length=2), chunk_size=5, capacity=4)
    before = {name: x.clone() for name, x in call.state().items()}
    drawn = cotangents(TORCH.forward(call))
    expected = TORCH.run(call, drawn)
    result = TORCH.run(call.with_options(donate_state=True), drawn)
    assert_bitwise_equal(result.outputs, expected.outputs)
    assert_bitwise_equal(result.gradients, expected.gradients)
    assert_bitwise_equal(call.state(), before)


@pytest.mark.cpu("an array of NumPy")
@both
def test_a_read_only_state_cannot_be_donated(op):
    arguments = example(op, torch.float32, chunk_size=5, capacity=4).arguments(to_numpy)
    arguments["initial_state"][0].flags.writeable = False
    with pytest.raises(
        ValueError, match=rf"^{op}: initial_state.k: expected a writeable array to donate, got"
    ):
        getattr(ops, op)(**arguments, donate_state=True)
