"""Decoding token by token: the numbers are the model's, whether the core runs alone or not."""

from __future__ import annotations

import threading

import pytest
import torch
import torch.nn.functional as F
from megalodon_core import _core
from megalodon_core.decoding import Decoder
from megalodon_core.frontends import torch as core
from megalodon_core.recording import Recording
from tolerance import assert_close

STEPS = 14  # past two ends of a chunk of 5
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 5e-2}
alone = pytest.mark.cpu("only there the core runs alone")


def prompt_and_tokens(rows):
    generator = torch.Generator("cpu").manual_seed(rows)
    made = torch.randint(19, (rows, 3 + STEPS), generator=generator, device="cpu").to(torch.empty(0).device)
    return made[:, :3], made[:, 3:]


def begin(model, rows, **options):
    """A decoder that has a prompt behind it, the tokens that follow, and their logits in one run over all."""
    prompt, tokens = prompt_and_tokens(rows)
    expected, _ = model(torch.cat((prompt, tokens), dim=1))
    return Decoder(model, model(prompt)[1], **options), tokens, expected[:, prompt.shape[1] :]


@torch.no_grad()
def assert_decodes(model, rows, rtol, replays):
    prompt, tokens = prompt_and_tokens(rows)
    _, state = model(prompt)
    decoder = Decoder(model, state)
    for i in range(STEPS):
        logits = decoder(tokens[:, i])
        expected, state = model(tokens[:, i : i + 1], state)
        assert_close(logits, expected[:, 0], rtol, f"logits {i}")
    assert decoder.is_recorded == replays
    for one, other in zip(decoder.state.layers, state.layers, strict=True):
        assert_close(one.cema, other.cema, rtol, "cema")
        assert_close(one.timestep_norm.var, other.timestep_norm.var, rtol, "var")
        assert torch.equal(one.attention.length, other.attention.length)
    assert torch.equal(decoder.state.final_norm.count, state.final_norm.count)
    return decoder


@alone
@pytest.mark.parametrize("rows", range(1, _core.few_rows + 1))
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_it_gives_what_the_model_gives(tiny, rows, dtype):
    assert_decodes(tiny(dtype=dtype), rows, TOLERANCE[dtype], replays=True)


@alone
@pytest.mark.parametrize(
    "changes",
    [
        {"swiglu": True},
        {"rescale_nffn": True, "scale_emb": True},
        {"norm_affine": False, "share_emb": True},
        {"chunk_size": 1},
        {"chunk_size": 100},
    ],
    ids=str,
)
def test_every_kind_of_model(tiny, changes):
    assert_decodes(tiny(**changes), 2, 1e-5, replays=True)


@alone
def test_a_state_with_gradients(tiny):
    model = tiny()
    decoder, tokens, expected = begin(model, 1)
    for i in range(STEPS):
        logits = decoder(tokens[:, i])
        assert not logits.requires_grad
        assert_close(logits, expected[:, i], 1e-5)
    assert decoder.obstacle is None


@torch.no_grad()
def test_dropout_is_off_and_the_mode_is_restored(tiny):
    model = tiny(dropout=0.5, hidden_dropout=0.5, attention_dropout=0.5).eval()
    decoder, tokens, expected = begin(model, 1)
    model.train()
    for i in range(STEPS):
        assert_close(decoder(tokens[:, i]), expected[:, i], 1e-5)
    assert all(module.training for module in model.modules())


@alone
def test_python_runs_for_two_tokens_only(tiny, monkeypatch):
    model = tiny().eval()
    with torch.no_grad():
        decoder, tokens, expected = begin(model, 2)
        decoder(tokens[:, 0])
        decoder(tokens[:, 1])
        monkeypatch.setattr(type(model), "run", None)
        assert_close(decoder(tokens[:, 2]), expected[:, 2], 1e-5)


@alone
def test_any_number_of_threads(tiny):
    model, before = tiny(), torch.get_num_threads()
    with torch.no_grad():
        decoder, tokens, expected = begin(model, 1)
    try:
        for i in range(STEPS):
            torch.set_num_threads(1 + i % 2)
            assert_close(decoder(tokens[:, i]), expected[:, i], 1e-5)
    finally:
        torch.set_num_threads(before)
    assert decoder.obstacle is None


def test_more_rows_than_the_core_maps(tiny):
    decoder = assert_decodes(tiny(), _core.few_rows + 1, 1e-5, replays=False)
    assert decoder.obstacle is not None


class Reversed(torch.nn.Module):
    """A layer in the place of another, which computes where torch does not see it."""

    def __init__(self, linear):
        super().__init__()
        self.linear = linear

    def forward(self, x):
        return torch.tensor(self.linear(x).tolist()).flip(-1)


def replaced(model):
    model.layers[0].mega.wr = Reversed(model.layers[0].mega.wr)


def patched(model):
    forward = model.forward
    model.forward = lambda *args, **kwargs: ((found := forward(*args, **kwargs))[0].flip(-1), found[1])


def hooked(model):
    model.layers[1].register_forward_hook(lambda module, inputs, output: (output[0].flip(-1), output[1]))


@pytest.mark.parametrize(
    ("change", "obstacle"),
    [
        (replaced, "another kind of module: Reversed"),
        (patched, "another kind of module: Megalodon"),
        (hooked, "a hook of Block"),
    ],
)
def test_what_others_add_is_not_lost(tiny, change, obstacle):
    model, plain = tiny(), tiny()
    change(model)
    decoder = assert_decodes(model, 1, 1e-5, replays=False)
    assert decoder.obstacle == obstacle
    _, tokens = prompt_and_tokens(1)
    with torch.no_grad():
        assert not torch.allclose(model(tokens)[0], plain(tokens)[0], rtol=1e-2)


def test_a_hook_of_all_modules(tiny):
    called = []
    hook = torch.nn.modules.module.register_module_forward_hook(lambda *_: called.append(1))
    try:
        decoder = assert_decodes(tiny(), 1, 1e-5, replays=False)
    finally:
        hook.remove()
    assert decoder.obstacle == "a hook of all modules"


def test_under_autocast(tiny):
    with torch.autocast(torch.empty(0).device.type, dtype=torch.bfloat16):
        assert_decodes(tiny(), 1, 5e-2, replays=False)


@alone
@pytest.mark.parametrize("observed", [{0}, {1}, {4}, {0, 1, 2}, {5, 6}], ids=str)
@torch.no_grad()
def test_what_is_to_be_seen_is_seen(tiny, observed):
    """A profiler sees the operators of the tokens it is there for, and the others are the core's alone."""
    model = tiny(chunk_size=100)
    decoder, tokens, expected = begin(model, 2)
    for i in range(STEPS):
        if i in observed:
            with torch.profiler.profile() as profile:
                logits = decoder(tokens[:, i])
            assert any(event.name == "megalodon_core::cema" for event in profile.events())
        else:
            logits = decoder(tokens[:, i])
        assert_close(logits, expected[:, i], 1e-5)
    assert decoder.is_recorded


@alone
@pytest.mark.parametrize("donate_state", [False, True])
def test_in_and_out_of_inference_mode(tiny, donate_state):
    model = tiny()
    with torch.inference_mode():
        decoder, tokens, expected = begin(model, 2, donate_state=donate_state)
    for i in range(STEPS):
        with torch.inference_mode(i % 4 < 2):
            assert_close(decoder(tokens[:, i]), expected[:, i], 1e-5)
    assert decoder.is_recorded


@torch.no_grad()
@pytest.mark.parametrize("failing", [0, 1])
def test_an_error_within_the_model_ends_it(tiny, failing, monkeypatch):
    model = tiny()
    decoder, tokens, _ = begin(model, 1)
    for i in range(failing):
        decoder(tokens[:, i])
    with monkeypatch.context() as patch:
        patch.setattr(type(model.output), "forward", lambda *_: 1 // 0)
        with pytest.raises(ZeroDivisionError):
            decoder(tokens[:, failing])
    assert not _core.is_recording()
    with pytest.raises(RuntimeError, match="an earlier call raised within the model"):
        decoder(tokens[:, failing])


@alone
@torch.no_grad()
def test_a_model_given_other_parameters_is_not_seen(tiny):
    model = tiny()
    decoder, tokens, expected = begin(model, 1)
    for i in range(3):
        decoder(tokens[:, i])
    embedding = model.embed.weight.clone()
    model.to(torch.float64)
    for parameter in model.parameters():
        parameter.zero_()
    model.embed.weight.copy_(embedding)
    junk = [torch.full((100,), torch.nan) for _ in range(1000)]
    assert_close(decoder(tokens[:, 3]), expected[:, 3], 1e-5)
    del junk


@torch.no_grad()
def test_rows_may_be_selected(tiny):
    model = tiny()
    decoder, tokens, expected = begin(model, 3)
    for i in range(STEPS):
        rows = [0, 1, 2] if i < 6 else [2, 0]
        decoder = decoder.select(rows) if i == 6 else decoder
        assert_close(decoder(tokens[rows, i]), expected[rows, i], 1e-5)


@torch.no_grad()
def test_a_state_is_the_callers_unless_donated(tiny):
    model = tiny(chunk_size=3)
    prompt, tokens = prompt_and_tokens(2)
    _, state = model(prompt)
    before = [tensor.clone() for tensor in state.tensors()]
    decoder, other = Decoder(model, state), Decoder(model, state)
    first = [decoder(tokens[:, i]) for i in range(4)]
    kept = [logits.clone() for logits in first]
    assert all(map(torch.equal, state.tensors(), before))
    for i in range(4):
        assert torch.equal(other(tokens[:, i]), kept[i])
    assert all(map(torch.equal, first, kept))
    donating = Decoder(model, state, donate_state=True)
    assert all(torch.equal(donating(tokens[:, i]), kept[i]) for i in range(4))


@torch.no_grad()
def test_streams_take_turns(tiny):
    model = tiny()
    prompt, tokens = prompt_and_tokens(2)
    _, state = model(prompt)
    both = Decoder(model, state)
    single = [Decoder(model, state.select([row])) for row in range(2)]
    for i in range(STEPS):
        together = both(tokens[:, i])
        for row in range(2):
            assert_close(single[row](tokens[row : row + 1, i]), together[row : row + 1], 1e-5)


def test_bad_arguments_are_named(tiny):
    model = tiny()
    prompt, tokens = prompt_and_tokens(2)
    with pytest.raises(TypeError, match="Decoder: state: expected a MegalodonState, got NoneType"):
        Decoder(model, None)
    decoder = Decoder(model, model(prompt)[1])
    with pytest.raises(TypeError, match="Decoder: tokens: expected a torch tensor, got list"):
        decoder([1, 2])
    with pytest.raises(ValueError, match=r"Decoder: tokens: expected shape \(2,\), got \(2, 1\)"):
        decoder(tokens[:, :1])
    for _ in range(3):
        decoder(tokens[:, 0])
        with pytest.raises(ValueError, match=r"values in \[0, 19\), got 19 to 19"):
            decoder(torch.full((2,), 19))


@alone
class TestRecording:
    @torch.no_grad()
    def test_it_runs_again_on_what_its_arrays_hold(self, dtype):
        x = torch.randn(3, 7).to(dtype)
        with Recording() as recording:
            y = F.silu(x) + x
            x.copy_(y)
        expected = x.clone()
        for _ in range(3):
            expected = F.silu(expected.double()) + expected.double()
            recording.replay()
            assert_close(y, expected.to(dtype), 4 * torch.finfo(dtype).eps)
            expected = y.clone()

    @pytest.fixture(params=[torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
    def dtype(self, request):
        return request.param

    @pytest.mark.parametrize(
        "other",
        [
            lambda x: x * 2,
            lambda x: x + 1,
            lambda x: torch.add(x, x, alpha=2),
            lambda x: x + x[0],
            lambda x: F.silu(x.T),
            lambda x: x.copy_(torch.zeros(())),
            lambda x: x.contiguous().T.contiguous(),
            lambda x: x.double(),
            lambda x: x.bool() + x.bool(),
            lambda x: x.sum() + x.sum(),
            lambda x: x[:, :0] + x[:, :0],
            lambda x: torch._neg_view(x.clone()).copy_(torch.ones(2, 3)),
            lambda x: F.linear(x, x),
        ],
    )
    @torch.no_grad()
    def test_other_operators_of_torch_cannot_be_replayed(self, other):
        x = torch.randn(2, 3)
        expected = other(x.clone())
        with Recording() as recording:
            assert torch.equal(other(x), expected)
        assert recording.foreign.startswith("aten.")
        with pytest.raises(RuntimeError, match=f"calls of the core alone, got {recording.foreign}"):
            recording.replay()

    def test_one_at_a_time_in_a_thread(self):
        with Recording(), pytest.raises(ValueError, match="no other recording under way"), Recording():
            raise AssertionError("entered")
        assert not _core.is_recording()
        with Recording():
            seen = []
            other = threading.Thread(target=lambda: seen.append(_core.is_recording()))
            other.start()
            other.join()
            assert seen == [False]

    def test_a_copy_of_another_shape_or_type_is_refused(self):
        x = torch.zeros(2, 3)
        for other, got in ((torch.zeros(3, 2), "float32 of shape"), (x.double(), "float64 of shape")):
            with pytest.raises(ValueError, match=f"copy: target: expected float32 of shape .*, got {got}"):
                core.copy(other, x)

    def test_it_is_refused_in_inference_mode(self):
        """Where torch would not say that x.double() is a copy."""
        with torch.inference_mode(), pytest.raises(RuntimeError, match="out of inference mode"), Recording():
            raise AssertionError("entered")
        assert not _core.is_recording()

    def test_an_error_ends_it(self):
        with pytest.raises(ZeroDivisionError), Recording():
            1 / 0  # noqa: B018
        assert not _core.is_recording()

    @torch.no_grad()
    def test_it_owns_its_memory(self):
        x = torch.full((1000,), 2.0)
        with Recording() as recording:
            y = F.silu(F.silu(x))
        x.fill_(1.0)
        junk = [torch.full((1000,), torch.nan) for _ in range(20)]
        recording.replay()
        del junk
        assert_close(y, F.silu(F.silu(x)), 1e-6)
