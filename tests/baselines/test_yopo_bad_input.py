"""Every mistake is told in one sentence, before work is lost, and leaves the model plain."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_decoders import IMAGE, MODELS, fresh, prompt, small
from torch import nn
from transformers import (
    AutoModelForImageTextToText,
    DynamicCache,
    LlavaConfig,
    Qwen2_5_VLConfig,
    Qwen2VLConfig,
    StaticCache,
)

from infoprune_rt.baselines.yopo import (
    EXECUTIONS,
    PRESETS,
    DecoderShape,
    VisualLayout,
    YopoSettings,
    compact_flops,
    head_ratios,
    install,
    preset,
)
from infoprune_rt.errors import InfopruneError

SETTINGS = YopoSettings(heads=0.5, layer_cut=3)
WINDOW = YopoSettings(radius=1)
PICTURE = (3, 3)
both_executions = pytest.mark.parametrize("execution", EXECUTIONS)


def tiny(config: Any) -> Any:
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(config)


SIZES = {"hidden_size": 16, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 40}
VISION = {"depth": 1, "hidden_size": 16, "num_heads": 2}


@pytest.mark.parametrize(
    "config",
    [
        Qwen2_5_VLConfig(text_config=SIZES, vision_config=VISION),
        LlavaConfig(text_config={"model_type": "mistral", **SIZES}),
        Qwen2VLConfig(
            text_config={**SIZES, "use_sliding_window": True, "max_window_layers": 0, "sliding_window": 8},
            vision_config={"depth": 1, "embed_dim": 16, "num_heads": 2, "hidden_size": 16},
        ),
    ],
    ids=["qwen2_5_vl", "llava on mistral", "sliding windows"],
)
def test_other_models(config: Any) -> None:
    model = tiny(config)
    with pytest.raises(InfopruneError, match=f"YOPO is not made for {type(model).__name__} .* decoder; give a"):
        install(model, SETTINGS, "compact")
    with pytest.raises(InfopruneError, match="YOPO is not made for"):
        head_ratios(model, [])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (YopoSettings(heads=1.5), "heads=1.5 is no share"),
        (YopoSettings(heads=((True,) * 6,) * 3), "head masks for 3 layers of 6 heads do not fit"),
        (YopoSettings(heads=()), "head masks for 0 layers of 0 heads do not fit"),
        (YopoSettings(layer_cut=5), "layer_cut=5 lies outside the decoder's 4 layers"),
        (YopoSettings(layer_cut=-1), "layer_cut=-1 lies outside"),
        (YopoSettings(first_head_layer=5), "first_head_layer=5 is none of the decoder's 4 layers"),
        (YopoSettings(radius=-1), "radius=-1 makes no window"),
        (YopoSettings(ffn_fraction=-0.1), "ffn_fraction=-0.1 is no share"),
        (YopoSettings(ffn_fraction=float("nan")), "ffn_fraction=nan is no share"),
    ],
)
@both_executions
def test_settings_that_do_not_fit(settings: YopoSettings, message: str, execution: str) -> None:
    model = small("llava")
    with pytest.raises(InfopruneError, match=message):
        install(model, settings, execution)
    install(model, SETTINGS, execution).remove()


@both_executions
@pytest.mark.parametrize("kind", MODELS)
def test_prompts_that_cannot_be_served(kind: str, execution: str) -> None:
    model = small(kind)
    good = prompt(model, [2, PICTURE, 2])
    ids = good["input_ids"]
    pair = {name: value.repeat(2, *[1] * (value.ndim - 1)) for name, value in good.items()}
    padded = torch.ones_like(ids)
    padded[0, 0] = 0
    with install(model, SETTINGS, execution), torch.no_grad():
        cases: list[tuple[dict[str, Any], str]] = [
            ({"input_ids": torch.tensor([[1, 2]])}, "the prompt holds no image tokens"),
            (prompt(model, [2, PICTURE]), "the prompt ends in a picture"),
            (pair, "one prompt at a time, but the batch has 2"),
            (good | {"attention_mask": padded}, "YOPO serves no padding"),
            (good | {"past_key_values": StaticCache(config=model.config, max_cache_len=40)}, "not a StaticCache"),
            ({"inputs_embeds": model.get_input_embeddings()(ids)}, "call the full model with input_ids"),
        ]
        if kind == "llava":  # Qwen2-VL itself stumbles over such a mask
            own = torch.zeros(1, 1, *[ids.shape[1]] * 2)
            cases.append((good | {"attention_mask": own}, "makes its own attention masks"))
        for inputs, message in cases:
            with pytest.raises(InfopruneError, match=message):
                model(**inputs)
        with pytest.raises(InfopruneError, match="call the full model with input_ids"):
            model.model.language_model(input_ids=ids)
        cache = model(**good).past_key_values
        with pytest.raises(InfopruneError, match="new pictures came with a cache"):
            model(input_ids=torch.tensor([[1, IMAGE, 2]]), past_key_values=cache)
        model(input_ids=torch.tensor([[1]]), past_key_values=cache)


@both_executions
def test_a_cache_from_elsewhere(execution: str) -> None:
    model = small("qwen2_vl")
    with torch.no_grad():
        cache = model(**prompt(model, [2, PICTURE, 2])).past_key_values
        assert isinstance(cache, DynamicCache)
        with install(model, SETTINGS, execution), pytest.raises(InfopruneError, match="not filled under this YOPO"):
            model(input_ids=torch.tensor([[1]]), past_key_values=cache)


def test_a_cache_of_compact_afterwards() -> None:
    model = small("llava")
    with torch.no_grad():
        with install(model, SETTINGS, "compact"):
            cache = model(**prompt(model, [2, PICTURE, 2])).past_key_values
        with pytest.raises(InfopruneError, match="filled by compact YOPO, which is not installed any more"):
            model(input_ids=torch.tensor([[1]]), past_key_values=cache)


def test_a_window_needs_the_grid() -> None:
    model = small("qwen2_vl")
    inputs = prompt(model, [2, PICTURE, 2])
    bare = {"input_ids": inputs["input_ids"], "inputs_embeds": None}
    with install(model, WINDOW, "compact"), torch.no_grad():
        model.model.rope_deltas = None
        with pytest.raises(InfopruneError, match="M-RoPE positions; pass the processor's image_grid_thw"):
            model(**bare)
    llava = small("llava")
    message = "8 visual tokens do not make whole pictures of 3 x 3"
    with install(llava, WINDOW, "compact"), torch.no_grad(), pytest.raises(InfopruneError, match=message):
        llava(input_ids=torch.tensor([[1, *[IMAGE] * 8, 2]]))
    for frames in ((), ((3, 3),)):
        layout = VisualLayout.of(torch.tensor([True, True, False]), frames)
        with pytest.raises(InfopruneError, match="do not hold 2 visual tokens; give frames"):
            compact_flops(DecoderShape.of(llava.config), WINDOW, layout)


@both_executions
def test_twice_is_once_too_often(execution: str) -> None:
    model = small("llava")
    with install(model, SETTINGS, "compact"), pytest.raises(InfopruneError, match="already installed in this model"):
        install(model, SETTINGS, execution)
    install(model, SETTINGS, execution).remove()


def test_unknown_names() -> None:
    with pytest.raises(InfopruneError, match="unknown YOPO execution 'fast'; known are as_released, compact"):
        install(small("llava"), SETTINGS, "fast")  # type: ignore[arg-type]
    with pytest.raises(InfopruneError, match=f"unknown YOPO preset 'half'; known are {', '.join(PRESETS)}"):
        preset("half", DecoderShape.of(small("llava").config))


def test_attention_that_cannot_be_switched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Transformers only warns, and goes on with what it has."""
    model = fresh("llava")
    decoder = model.model.language_model
    monkeypatch.setattr(type(decoder), "_can_set_attn_implementation", classmethod(lambda _: False))
    for use in (lambda: install(model, SETTINGS, "as_released"), lambda: head_ratios(model, [])):
        with pytest.raises(InfopruneError, match="cannot be switched from 'sdpa' to eager"):
            use()
    assert not any(m._forward_pre_hooks for m in model.modules())
    install(model, SETTINGS, "compact").remove()  # which needs no eager attention


def test_compact_needs_plain_layers() -> None:
    class Quantised(nn.Linear):
        pass

    model = fresh("llava")
    layer = model.model.language_model.layers[2]
    layer.mlp.gate_proj = Quantised(48, 20)
    with pytest.raises(InfopruneError, match=r"mlp\.gate_proj is a Quantised, not an nn.Linear"):
        install(model, SETTINGS, "compact")
    model = fresh("llava")
    layer = model.model.language_model.layers[2]
    layer.forward = layer.forward
    with pytest.raises(InfopruneError, match="another library has replaced the decoder layers' forward"):
        install(model, SETTINGS, "compact")
    assert "forward" not in vars(model.model.language_model.layers[0])


def test_compact_has_no_gradients() -> None:
    model = fresh("llava").requires_grad_(True)
    inputs = prompt(model, [1, PICTURE, 2])
    with install(model, SETTINGS, "compact"), pytest.raises(InfopruneError, match="compact YOPO has no gradients"):
        model(**inputs)
    with install(model, SETTINGS, "as_released"):
        model(**inputs).logits.sum().backward()
    assert model.model.language_model.layers[0].self_attn.q_proj.weight.grad.abs().sum() > 0
