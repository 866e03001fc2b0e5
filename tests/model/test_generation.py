"""Generation: what is chosen, that batches and pieces do not matter, and what is refused."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from megalodon_core.generation import Sampler, generate, left_padded, prefill, stream

PROMPTS = [[3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5], [8], [2, 7, 1, 8, 2, 8], [16, 18]]


@pytest.fixture
def model(tiny):
    return tiny().eval()


def greedy_by_recomputing(model, prompt, count):
    """The definition: the whole sequence goes through the model for every new token."""
    tokens = list(prompt)
    for _ in range(count):
        logits, _ = model(torch.tensor([tokens]))
        tokens.append(int(logits[0, -1].argmax()))
    return tokens[len(prompt) :]


def test_greedy_batch_equals_recomputing_each_prompt(model):
    expected = [greedy_by_recomputing(model, prompt, 12) for prompt in PROMPTS]
    assert generate(model, PROMPTS, max_new_tokens=12) == expected
    assert [generate(model, [prompt], max_new_tokens=12)[0] for prompt in PROMPTS] == expected


def test_constant_parameters_change_no_bit(model):
    tokens = torch.tensor([PROMPTS[0]])
    with torch.no_grad():
        expected, _ = model(tokens)
        with model.constant_parameters():
            assert torch.equal(model(tokens)[0], expected)
            assert torch.equal(model(tokens)[0], expected)


def test_constant_parameters_are_a_promise_about_calls_without_gradients(model):
    """A change goes unseen until the promise ends, and never where gradients are recorded."""
    tokens = torch.tensor([PROMPTS[0]])
    with torch.no_grad():
        before, _ = model(tokens)
        with model.constant_parameters():
            model(tokens)
            model.layers[0].mega.cema.gamma.add_(1.0)
            assert torch.equal(model(tokens)[0], before)
            with torch.enable_grad():
                seen, _ = model(tokens)
        after, _ = model(tokens)
    assert not torch.equal(after, before)
    assert torch.equal(seen, after)
    seen.sum().backward()
    assert model.layers[0].mega.cema.gamma.grad.any()


def test_streams_leave_the_model_as_it_was(model):
    """Two at once, which end in the order they began; one that is never finished; one in another's step."""
    tokens = torch.tensor([PROMPTS[0]])
    first, second, unfinished = (stream(model, PROMPTS, max_new_tokens=4) for _ in range(3))
    next(unfinished)
    for one, other in zip(first, second, strict=True):
        assert one == other
        assert generate(model, [PROMPTS[1]], max_new_tokens=1)
    with torch.no_grad():
        before, _ = model(tokens)
        model.layers[0].mega.cema.gamma.add_(1.0)
        after, _ = model(tokens)
    assert not torch.equal(after, before)


def test_constant_parameters_may_end_in_any_order(model):
    tokens = torch.tensor([PROMPTS[0]])
    one, other = model.constant_parameters(), model.constant_parameters()
    with torch.no_grad():
        one.__enter__()
        other.__enter__()
        one.__exit__()
        before, _ = model(tokens)
        other.__exit__()
        model.layers[0].mega.cema.gamma.add_(1.0)
        after, _ = model(tokens)
    assert not torch.equal(after, before)


@pytest.mark.parametrize("prompt", [[1, -1], [2**70], torch.tensor([1, 10**6])])
def test_ids_out_of_range_are_refused_at_the_call(model, prompt):
    with pytest.raises(ValueError, match=r"generate: prompts\[1\]: expected token ids in \[0, "):
        stream(model, [[1], prompt], max_new_tokens=1)


@pytest.mark.parametrize("chunk", [1, 4, 5, 100])
def test_prompt_pieces_do_not_matter(model, chunk):
    expected = generate(model, PROMPTS, max_new_tokens=5)
    assert generate(model, PROMPTS, max_new_tokens=5, prefill_chunk=chunk) == expected


def test_prompts_of_any_kind(model):
    expected = generate(model, PROMPTS, max_new_tokens=3)
    assert generate(model, (torch.tensor(prompt) for prompt in PROMPTS), max_new_tokens=3) == expected
    assert generate(model, torch.tensor([PROMPTS[2], PROMPTS[2]]), max_new_tokens=3) == [expected[2]] * 2


def test_top_k_1_is_greedy(model):
    greedy = generate(model, PROMPTS, max_new_tokens=8)
    assert generate(model, PROMPTS, max_new_tokens=8, temperature=5.0, top_k=1, seed=0) == greedy


def test_tiny_top_p_and_tiny_temperature_are_greedy(model):
    greedy = generate(model, PROMPTS, max_new_tokens=8)
    assert generate(model, PROMPTS, max_new_tokens=8, temperature=1.0, top_p=1e-9, seed=0) == greedy
    assert generate(model, PROMPTS, max_new_tokens=8, temperature=1e-30, seed=0) == greedy


def test_seed_fixes_the_sample(model):
    def sample(seed):
        return generate(model, PROMPTS, max_new_tokens=12, temperature=1.5, seed=seed)

    assert sample(7) == sample(7)
    assert sample(7) != sample(8)
    torch.manual_seed(5)
    first = sample(None)
    torch.manual_seed(5)
    assert sample(None) == first


def test_seeded_sampling_leaves_the_default_generator_alone(model):
    before = torch.get_rng_state()
    generate(model, PROMPTS, max_new_tokens=3, temperature=1.0, seed=0)
    assert torch.equal(torch.get_rng_state(), before)


@settings(max_examples=50, deadline=None)
@given(
    logits=st.lists(st.floats(-8, 8), min_size=1, max_size=9),
    temperature=st.floats(0.1, 4),
    top_k=st.none() | st.integers(1, 12),
    top_p=st.floats(0.01, 1),
)
def test_kept_tokens(logits, temperature, top_k, top_p):
    row = torch.tensor([logits], dtype=torch.float64)
    probabilities, ids = Sampler(temperature, top_k, top_p).distribution(row)
    full = torch.softmax(row / temperature, dim=-1)[0]
    cut = full[ids[0]] / full[ids[0]].sum()
    assert len(ids[0]) == min(len(logits), top_k or len(logits))
    assert full[ids[0]].min() >= full.sort(descending=True).values[len(ids[0]) - 1] - 1e-12
    kept = probabilities[0] > 0
    count = int(kept.sum())
    assert count >= 1
    assert kept[:count].all()
    torch.testing.assert_close(probabilities[0][kept], cut[kept], rtol=1e-9, atol=1e-12)
    assert cut[: count - 1].sum() < top_p + 1e-9
    assert cut[:count].sum() >= top_p - 1e-9


def test_sample_frequencies_follow_the_distribution():
    logits = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05])).expand(4000, -1)
    sampler = Sampler(temperature=1.0, top_p=0.9, seed=0)
    chosen = sampler.choose(logits, sampler.generator(logits.device))
    frequencies = torch.bincount(chosen, minlength=4) / 4000
    torch.testing.assert_close(frequencies, torch.tensor([0.5, 0.3, 0.15, 0]) / 0.95, atol=0.03, rtol=0)


def test_eos_ends_a_row_and_spares_the_others(model):
    expected = generate(model, PROMPTS, max_new_tokens=12)
    eos = expected[0][2]
    stopped = generate(model, PROMPTS, max_new_tokens=12, eos=eos)
    for row, whole in zip(stopped, expected, strict=True):
        assert row == (whole[: whole.index(eos) + 1] if eos in whole else whole)
    assert len(stopped[0]) <= 3


def test_stream_yields_as_it_goes(model):
    calls = []
    hook = model.register_forward_hook(lambda *_: calls.append(1))
    steps = stream(model, PROMPTS, max_new_tokens=1000, prefill_chunk=100)
    assert not calls
    first, second = next(steps), next(steps)
    hook.remove()
    assert len(calls) == 2
    assert first.keys() == second.keys() == {0, 1, 2, 3}
    assert [[first[row], second[row]] for row in range(4)] == generate(model, PROMPTS, max_new_tokens=2)


def test_dropout_is_off_and_the_mode_is_restored(tiny):
    model = tiny(dropout=0.5, hidden_dropout=0.5, attention_dropout=0.5)
    expected = generate(tiny().eval(), PROMPTS, max_new_tokens=6)
    assert generate(model.train(), PROMPTS, max_new_tokens=6) == expected
    assert model.training
    assert all(module.training for module in model.modules())


def test_prefill_needs_memory_for_one_piece_only(model):
    lengths = []
    hook = model.register_forward_pre_hook(lambda _, args: lengths.append(args[0].shape[1]))
    tokens = torch.arange(101).remainder(19).view(1, -1)
    logits, state = prefill(model, tokens, chunk=10)
    hook.remove()
    assert lengths == [10] * 10 + [1]
    whole, _ = model(tokens)
    torch.testing.assert_close(logits, whole[:, -1], rtol=1e-4, atol=1e-5)
    assert state.final_norm.count.tolist() == [101]


def test_left_padding():
    tokens, mask = left_padded([[1, 2, 3], [4]], 5, torch.device("cpu"))
    assert tokens.tolist() == [[1, 2, 3], [0, 0, 4]]
    assert mask.tolist() == [[False, False, False], [True, True, False]]
    assert left_padded([[1], [2]], 5, torch.device("cpu"))[1] is None


@pytest.mark.parametrize(
    ("changes", "error", "name"),
    [
        ({"max_new_tokens": 0}, ValueError, "max_new_tokens"),
        ({"max_new_tokens": 1.5}, TypeError, "max_new_tokens"),
        ({"temperature": -1.0}, ValueError, "temperature"),
        ({"temperature": float("nan")}, ValueError, "temperature"),
        ({"top_k": 0}, ValueError, "top_k"),
        ({"top_k": 2.0}, TypeError, "top_k"),
        ({"top_p": 0.0}, ValueError, "top_p"),
        ({"top_p": 1.1}, ValueError, "top_p"),
        ({"seed": "a"}, TypeError, "seed"),
        ({"eos": 19}, ValueError, "eos"),
        ({"prefill_chunk": 0}, ValueError, "prefill_chunk"),
        ({"prompts": []}, ValueError, "prompts"),
        ({"prompts": [[]]}, ValueError, r"prompts\[0\]"),
        ({"prompts": [1, 2]}, TypeError, r"prompts\[0\]"),
        ({"prompts": ["ab"]}, TypeError, r"prompts\[0\]"),
        ({"prompts": [[1], [1.5]]}, ValueError, r"prompts\[1\]"),
        ({"prompts": [torch.zeros(2, 2, dtype=torch.int64)]}, ValueError, r"prompts\[0\]"),
        ({"prompts": [[19]]}, ValueError, r"prompts\[0\]"),
    ],
)
def test_bad_arguments_are_named(model, changes, error, name):
    with pytest.raises(error, match=f"{name}: expected .*, got "):
        generate(model, **({"prompts": PROMPTS, "max_new_tokens": 2} | changes))


def test_stream_checks_at_the_call(model):
    with pytest.raises(ValueError, match="max_new_tokens"):
        stream(model, PROMPTS, max_new_tokens=0)


def test_a_model_of_other_outputs_cannot_generate(tiny):
    with pytest.raises(ValueError, match="as many logits as token ids"):
        generate(tiny(output_size=7), PROMPTS, max_new_tokens=1)
