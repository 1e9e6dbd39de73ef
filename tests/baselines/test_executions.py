"""YOPO's two executions against each other, against their definition, and against the plain model."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from small_decoders import IMAGE, MODELS, VIDEO, answer, fresh, in_full_precision, prompt, small
from strategies import segments
from strategies import settings as all_settings
from torch import Tensor
from transformers import PreTrainedModel

from infoprune_rt.baselines.yopo import EXECUTIONS, VisualLayout, YopoSettings, install

STEPS = [[3], [4, 5], [6]]  # further words, fed through the cache one step after the other
NOTHING = YopoSettings()


def both(kind: str, dtype: torch.dtype, settings: YopoSettings, pictures: list) -> dict[str, Tensor]:
    """All text rows' logits of the prompt and of every step after it, [rows, vocabulary], by each execution."""
    found = {}
    for execution in EXECUTIONS:
        model = small(kind, dtype)
        inputs = prompt(model, pictures)
        with install(model, settings, execution):
            found[execution] = torch.cat(answer(model, inputs, STEPS))
    return found


@pytest.mark.parametrize("kind", MODELS)
@given(data=st.data(), settings=all_settings)
@hypothesis_settings(max_examples=20)
def test_compact_is_as_released(kind: str, data: st.DataObject, settings: YopoSettings) -> None:
    pictures = data.draw(segments(kind))
    with in_full_precision(small(kind, torch.float64)):
        exact = both(kind, torch.float64, settings, pictures)
    largest = exact["as_released"].abs().max()
    assert (exact["compact"] - exact["as_released"]).abs().max() <= 1e-13 * largest
    found = both(kind, torch.float32, settings, pictures)
    errors = {name: (logits - exact["as_released"]).abs().max() for name, logits in found.items()}
    assert errors["compact"] <= 2 * errors["as_released"] + torch.finfo(torch.float32).eps * largest


@pytest.mark.parametrize("kind", MODELS)
def test_pruning_nothing_is_the_plain_model(kind: str) -> None:
    for dtype in (torch.float64, torch.float32):
        model = small(kind, dtype)
        inputs = prompt(model, [2, (3, 5), 1, (2, 2), 3])
        model.model.language_model.set_attn_implementation("eager")
        eager = torch.cat(answer(model, inputs, STEPS))
        model.model.language_model.set_attn_implementation("sdpa")
        plain = torch.cat(answer(model, inputs, STEPS))
        with install(model, NOTHING, "as_released"):
            assert torch.equal(torch.cat(answer(model, inputs, STEPS)), eager)
        with install(model, NOTHING, "compact"):
            compact = torch.cat(answer(model, inputs, STEPS))
        if dtype == torch.float64:
            exact = plain
    assert (compact - exact).abs().max() <= 2 * (plain - exact).abs().max() + torch.finfo(dtype).eps * exact.abs().max()


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("kind", MODELS)
def test_no_live_head_is_a_cut_at_layer_0(kind: str, execution: str) -> None:
    """To text, and pictures are then not there at all; only the positions know of them."""
    model = small(kind, torch.float64)
    found = []
    for settings in (YopoSettings(heads=0.0), YopoSettings(layer_cut=0)):
        for seed in (0, 1):
            inputs = prompt(model, [2, (3, 4), 3])
            if seed:
                inputs["pixel_values"] = torch.randn_like(inputs["pixel_values"])
            with install(model, settings, execution):
                found.append(torch.cat(answer(model, inputs, STEPS)))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=0, atol=1e-6)  # transformers' softmax is float32


def may_see(layout: VisualLayout, settings: YopoSettings, layer: int, head: int, query: int, key: int) -> bool:
    """The definition in ``yopo``, word by word, for one pair of rows."""
    heads, is_visual, places = settings.heads, set(layout.visual.tolist()), []
    assert isinstance(heads, tuple)
    for frame, (rows, columns) in enumerate(layout.frames):
        places += [(frame, row, column) for row in range(rows) for column in range(columns)]
    place = dict(zip(layout.visual.tolist(), places, strict=True))
    live = heads[layer][head] or layer < settings.first_head_layer
    if key in is_visual and (layer >= settings.layer_cut or not live):
        return False
    if key in is_visual and query in is_visual:
        (frame, row, column), (other, other_row, other_column) = place[query], place[key]
        return frame == other and max(abs(row - other_row), abs(column - other_column)) <= settings.radius
    return key <= query


@pytest.mark.parametrize("kind", MODELS)
def test_as_released_attends_where_the_definition_says(kind: str) -> None:
    model = small(kind)
    heads = tuple(tuple(row) for row in (torch.rand(4, 6) < 0.5).tolist())
    settings = YopoSettings(heads, first_head_layer=1, layer_cut=3, radius=1)
    inputs = prompt(model, [2, (3, 4), 1, (2, 3, 2), 2])
    with install(model, settings, "as_released") as yopo:
        attentions = model(**inputs, output_attentions=True).attentions
        layout = yopo.layout
    assert layout is not None
    tokens = range(layout.tokens)
    for layer, weights in enumerate(attentions):
        for head in range(6):
            wanted = [[may_see(layout, settings, layer, head, q, k) for k in tokens] for q in tokens]
            rows = torch.tensor(wanted).any(dim=1)  # a visual row before all text may be left with no key at all
            assert torch.equal((weights[0, head] > 0)[rows], torch.tensor(wanted)[rows])


def test_the_layout_is_the_prompts_own() -> None:
    model = small("qwen2_vl")
    inputs = prompt(model, [0, (3, 4), 2, (2, 3, 2), 1, (1, 5), 2, (4, 1), 3])
    with install(model, YopoSettings(radius=1), "compact") as yopo:
        model.generate(**inputs, max_new_tokens=2)
        layout = yopo.layout
    assert layout is not None
    assert layout.frames == ((3, 4), (3, 2), (3, 2), (1, 5), (4, 1))
    is_visual = (inputs["input_ids"][0] == IMAGE) | (inputs["input_ids"][0] == VIDEO)
    assert torch.equal(layout.visual, is_visual.nonzero()[:, 0])
    assert torch.equal(layout.text, (~is_visual).nonzero()[:, 0])


@pytest.mark.parametrize("kind", MODELS)
def test_generate_says_the_same(kind: str) -> None:
    """With a cache and without: every step's logits are the same, and not the plain model's."""
    model = small(kind, torch.float64)
    inputs = prompt(model, [2, (3, 3), 1, (3, 3), 3])
    settings = YopoSettings(heads=0.5, layer_cut=3, radius=1, ffn_fraction=0.5)
    found = []
    with in_full_precision(model):
        for execution in EXECUTIONS:
            with install(model, settings, execution):
                found += [_generated(model, inputs, use_cache) for use_cache in (True, False)]
        plain = _generated(model, inputs, True)
    assert all((logits - found[0]).abs().max() <= 1e-12 for logits in found)
    assert (plain - found[0]).abs().max() > 0.01


def _generated(model: PreTrainedModel, inputs: dict[str, Tensor], use_cache: bool) -> Tensor:
    """Logits of 8 generated words, [8, vocabulary]."""
    asked = {"max_new_tokens": 8, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    return torch.cat(model.generate(**inputs, **asked, use_cache=use_cache).logits)


@pytest.mark.parametrize("kind", MODELS)
def test_two_conversations_may_take_turns(kind: str) -> None:
    """Of pictures of one size: transformers' Qwen2-VL itself keeps only the last prompt's positions."""
    model = small(kind)
    prompts = [prompt(model, pictures, seed) for seed, pictures in enumerate([[2, (3, 3), 2], [1, (3, 3), 4]])]
    settings = YopoSettings(heads=0.5, layer_cut=3, radius=1)
    word = torch.tensor([[7]])
    for execution in EXECUTIONS:
        with install(model, settings, execution), torch.no_grad():
            alone = [model(input_ids=word, past_key_values=model(**one).past_key_values).logits for one in prompts]
            caches = [model(**one).past_key_values for one in prompts]
            turns = [model(input_ids=word, past_key_values=cache).logits for cache in caches]
        assert all(torch.equal(one, other) for one, other in zip(alone, turns, strict=True))


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("kind", MODELS)
def test_removing_it_leaves_the_plain_model(kind: str, execution: str) -> None:
    model = fresh(kind)
    inputs = prompt(model, [1, (3, 3), 2])
    before, weights = torch.cat(answer(model, inputs, STEPS)), {k: v.clone() for k, v in model.state_dict().items()}
    attributes = {name: set(vars(module)) for name, module in model.named_modules()}
    installed = install(model, YopoSettings(heads=0.5, layer_cut=2, radius=1, ffn_fraction=0.5), execution)
    pruned = torch.cat(answer(model, inputs, STEPS))
    installed.remove()
    installed.remove()
    assert not torch.equal(pruned, before)
    assert torch.equal(torch.cat(answer(model, inputs, STEPS)), before)
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())
    assert {name: set(vars(module)) for name, module in model.named_modules()} == attributes
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.model.language_model.modules())
    assert model.model.language_model.config._attn_implementation == "sdpa"


def test_an_error_in_the_block_removes_it_too() -> None:
    model = small("llava")
    with pytest.raises(KeyError), install(model, NOTHING, "compact"):
        raise KeyError
    install(model, NOTHING, "compact").remove()


def test_compact_takes_weights_that_were_changed_later() -> None:
    model, settings = fresh("qwen2_vl"), YopoSettings(heads=0.5, ffn_fraction=0.5)
    inputs = prompt(model, [1, (3, 3), 2])
    with install(model, settings, "compact"):
        answer(model, inputs, STEPS)
        model.load_state_dict(fresh("qwen2_vl", seed=1).state_dict())
        changed = torch.cat(answer(model, inputs, STEPS))
    with install(model, settings, "compact"):
        assert torch.equal(torch.cat(answer(model, inputs, STEPS)), changed)


def test_the_cache_keeps_only_what_is_read() -> None:
    """Visual keys of KV heads that a live head reads, in layers before the cut; text of all."""
    model = small("qwen2_vl")
    second_kv_head = (False, False, False, True, False, True)
    every, none = (True,) * 6, (False,) * 6
    settings = YopoSettings((every, second_kv_head, none, every), layer_cut=3)
    with install(model, settings, "compact"), torch.no_grad():
        cache = model(**prompt(model, [2, (3, 4), 3])).past_key_values
        assert [layer.visual_keys.shape[:2] for layer in cache.layers] == [(2, 12), (1, 12), (0, 12), (0, 12)]
        assert all(layer.keys.shape[1:3] == (2, 5) for layer in cache.layers)
        assert cache.get_seq_length() == 17
