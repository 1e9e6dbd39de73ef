"""transformers' own towers on our blocks: the same answers, the same module, the same weights; and back again."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from small_towers import (
    ARCHITECTURES,
    assert_as_good,
    double,
    tower,
    tower_inputs,
    vision_config,
    vlm_config,
    vlm_inputs,
)
from torch import Tensor, nn
from transformers import (
    AutoModelForImageTextToText,
    BertConfig,
    BertModel,
    CLIPVisionModelWithProjection,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedModel,
    SiglipVisionConfig,
)

import infoprune_rt
from infoprune_rt.demo.handwriting import read_handwriting, write_handwriting
from infoprune_rt.demo.tiny_vlm import SHIPPED
from infoprune_rt.errors import InfopruneError
from infoprune_rt.evaluation.answering import answer
from infoprune_rt.processing import load_processor
from infoprune_rt.runtime.blocks import dense_specs
from infoprune_rt.towers import adapter_by_name


def accelerated(architecture: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    dense = tower(architecture).to(dtype)
    assert infoprune_rt.accelerate(dense) is dense
    return dense


def full_model(architecture: str) -> PreTrainedModel:
    torch.manual_seed(1)
    vlm: PreTrainedModel = AutoModelForImageTextToText.from_config(vlm_config(architecture)).eval()
    adapter_by_name(architecture).replace_tower(vlm, tower(architecture))
    return vlm


def passes(dense: Any) -> list[None]:
    """Grows by one with every pass of the compact tower that an accelerated one's weights are in now."""
    seen: list[None] = []
    dense.forward.compact.register_forward_hook(lambda *_: seen.append(None))
    return seen


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_answers_as_transformers_and_as_before_when_restored(architecture: str, dtype: torch.dtype) -> None:
    dense, inputs = tower(architecture).to(dtype), tower_inputs(architecture)
    with torch.no_grad():
        exact = copy.deepcopy(dense).double()(**double(inputs), output_hidden_states=True)
        theirs = dense(**inputs, output_hidden_states=True)
        infoprune_rt.accelerate(dense)
        ours = passes(dense)
        assert_as_good(dense(**inputs, output_hidden_states=True), theirs, exact)
        assert_as_good(dense(**inputs), {name: theirs[name] for name in ("last_hidden_state", "pooler_output")}, exact)
        last, pooled = dense(*inputs.values(), return_dict=False)
        assert torch.equal(pooled, dense(**inputs).pooler_output)
        assert len(ours) == 4
        infoprune_rt.restore(dense)
        assert torch.equal(dense(**inputs).last_hidden_state, theirs.last_hidden_state)
        assert len(ours) == 4
    assert last.dtype == dtype


def test_other_image_sizes_of_clip() -> None:
    dense, pixels = tower("clip"), torch.randn(2, 3, 24, 45)
    with torch.no_grad():
        exact = copy.deepcopy(dense).double()(pixels.double(), interpolate_pos_encoding=True)
        theirs = dense(pixels, interpolate_pos_encoding=True)
        infoprune_rt.accelerate(dense)
        ours = passes(dense)
        assert_as_good(dense(pixels, interpolate_pos_encoding=True), theirs, exact)
    assert len(ours) == 1


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("part", [lambda vlm: vlm, lambda vlm: vlm.model], ids=["full model", "backbone"])
def test_full_models_generate_the_same(architecture: str, part: Callable[[Any], Any]) -> None:
    vlm, inputs = full_model(architecture), vlm_inputs(architecture)
    dense = adapter_by_name(architecture).tower_of(vlm)
    images = {name: inputs[name] for name in ("pixel_values", "image_grid_thw") if name in inputs}
    with torch.no_grad():
        logits, features = vlm(**inputs).logits, vlm.get_image_features(**images).pooler_output
        tokens = vlm.generate(**inputs, max_new_tokens=5, do_sample=False)
        assert infoprune_rt.accelerate(part(vlm)) is part(vlm)
        ours = passes(dense)
        assert torch.allclose(vlm(**inputs).logits, logits, atol=1e-4)
        assert torch.allclose(vlm.get_image_features(**images).pooler_output[0], features[0], atol=1e-4)
        assert torch.equal(vlm.generate(**inputs, max_new_tokens=5, do_sample=False), tokens)
        assert len(ours) == 3
        infoprune_rt.restore(part(vlm))
        assert torch.equal(vlm(**inputs).logits, logits)
    assert adapter_by_name(architecture).tower_of(vlm) is dense


def test_the_shipped_model_gives_the_same_answers(tmp_path: Path) -> None:
    write_handwriting(tmp_path / "test", "test", scenes=3, seed=5)
    questions, processor = read_handwriting(tmp_path / "test"), load_processor(SHIPPED)
    vlm = AutoModelForImageTextToText.from_pretrained(SHIPPED, dtype=torch.float32).eval()

    def texts() -> list[str | None]:
        return [said.text for said in answer(vlm, processor, questions, batch_size=24, progress=False)]

    before = texts()
    infoprune_rt.accelerate(vlm)
    ours = passes(vlm.model.visual)
    during = texts()
    assert ours
    infoprune_rt.restore(vlm)
    assert before == during == texts()
    assert len(set(before)) > 5


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_twice_is_once(architecture: str) -> None:
    dense, inputs = accelerated(architecture), tower_inputs(architecture)
    ours = passes(dense)
    infoprune_rt.accelerate(dense)
    with torch.no_grad():
        dense(**inputs)
        assert len(ours) == 1
        infoprune_rt.restore(infoprune_rt.restore(dense))
        dense(**inputs)
    assert len(ours) == 1


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_memory_is_shared_where_the_layouts_agree(architecture: str) -> None:
    dense: Any = accelerated(architecture)
    own = {parameter.untyped_storage().data_ptr() for parameter in dense.parameters()}
    state = dense.forward.compact.state_dict()
    copied = {name for name, tensor in state.items() if tensor.untyped_storage().data_ptr() not in own}
    blocks = range(len(dense.forward.compact.blocks))
    joined = {f"blocks.{i}.qkv.{kind}" for i in blocks for kind in ("weight", "bias")}
    assert copied == (joined if architecture == "clip" else set())


def scale_in_place(dense: nn.Module) -> None:
    with torch.no_grad():
        for parameter in dense.parameters():
            parameter.mul_(0.9)


def load_others(dense: nn.Module) -> None:
    dense.load_state_dict(tower("qwen2_vl" if hasattr(dense, "merger") else "clip", seed=7).state_dict())


def put_in_others(dense: nn.Module) -> None:
    dense.load_state_dict(copy.deepcopy(dense.state_dict()), assign=True)
    scale_in_place(dense)


@pytest.mark.parametrize("change", [scale_in_place, load_others, put_in_others, lambda dense: dense.to(torch.bfloat16)])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_changed_weights_count_from_the_next_call_on(architecture: str, change: Callable[[nn.Module], Any]) -> None:
    dense, inputs = accelerated(architecture), tower_inputs(architecture)
    with torch.no_grad():
        dense(**inputs)
        change(dense)
        ours = passes(dense)
        mine = dense(**inputs)
        infoprune_rt.restore(dense)
        theirs = dense(**inputs)
        exact = copy.deepcopy(dense).double()(**double(inputs))
    assert len(ours) == 1
    assert_as_good(mine, theirs, exact)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_training_is_as_without_and_its_weights_are_used(architecture: str) -> None:
    dense, plain, inputs = accelerated(architecture), tower(architecture), tower_inputs(architecture)
    for model in (dense, plain):
        optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
        for _ in range(2):
            optimiser.zero_grad()
            model.train()(**inputs).pooler_output.square().mean().backward()
            optimiser.step()
        model.eval()
    for mine, theirs in zip(dense.parameters(), plain.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    ours = passes(dense)
    with torch.no_grad():
        exact = copy.deepcopy(plain).double()(**double(inputs))
        assert_as_good(dense(**inputs), plain(**inputs), exact)
    assert len(ours) == 1


def test_gradients_of_the_pixels_flow_through_frozen_towers() -> None:
    dense, plain = accelerated("clip").requires_grad_(False), tower("clip").requires_grad_(False)
    pixels = [torch.ones(1, 3, 35, 35, requires_grad=True) for _ in range(2)]
    for model, x in zip((dense, plain), pixels, strict=True):
        model(x).pooler_output.sum().backward()
    assert torch.equal(pixels[0].grad, pixels[1].grad)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_saved_while_accelerated_it_is_the_stock_checkpoint(architecture: str, tmp_path: Path) -> None:
    vlm, inputs = full_model(architecture), vlm_inputs(architecture)
    names = list(vlm.state_dict())
    vlm.save_pretrained(tmp_path / "before")
    infoprune_rt.accelerate(vlm)
    with torch.no_grad():
        logits = vlm(**inputs).logits
    assert list(vlm.state_dict()) == names
    vlm.save_pretrained(tmp_path / "during")
    files = {path.name: path.read_bytes() for path in (tmp_path / "during").iterdir()}
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "before").iterdir()}
    again, report = AutoModelForImageTextToText.from_pretrained(tmp_path / "during", output_loading_info=True)
    assert not any(report[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        assert torch.allclose(again.eval()(**inputs).logits, logits, atol=1e-4)


def pickled(dense: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(dense, file)
    file.seek(0)
    again: nn.Module = torch.load(file, weights_only=False)
    return again


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_copies_are_accelerated_towers_of_their_own(architecture: str, copied: Callable[[nn.Module], Any]) -> None:
    dense, inputs = accelerated(architecture), tower_inputs(architecture)
    other = copied(dense)
    ours, others = passes(dense), passes(other)
    with torch.no_grad():
        expected = dense(**inputs).pooler_output
        assert torch.equal(other(**inputs).pooler_output, expected)
        assert (len(ours), len(others)) == (1, 1)
        scale_in_place(other)
        assert not torch.equal(other(**inputs).pooler_output, expected)
        assert torch.equal(dense(**inputs).pooler_output, expected)
        infoprune_rt.restore(other)
        dense(**inputs)
    assert len(ours) == 3


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_several_threads_at_once(architecture: str) -> None:
    dense, inputs = accelerated(architecture), tower_inputs(architecture)

    @torch.no_grad()
    def pooled(_: int) -> Tensor:
        out: Tensor = dense(**inputs).pooler_output
        return out

    with ThreadPoolExecutor(4) as pool:
        first, *rest = pool.map(pooled, range(12))
    assert all(torch.equal(other, first) for other in rest)


def attention_maps(dense: Any, inputs: dict[str, Tensor]) -> Any:
    dense.set_attn_implementation("eager")
    return dense(**inputs, output_attentions=True)


def under_autocast(dense: Any, inputs: dict[str, Tensor]) -> Any:
    with torch.autocast("cpu", torch.bfloat16):
        return dense(**inputs)


def hooked_inside(dense: Any, inputs: dict[str, Tensor]) -> Any:
    (norm,) = [module for name, module in dense.named_modules() if name.endswith(("1.norm1", "1.layer_norm1"))]
    handle = norm.register_forward_hook(lambda module, args, output: output * 0)
    found = dense(**inputs)
    handle.remove()
    return found


class Adapted(nn.Linear):
    """Stands where an adapter library would put a layer of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 3


def adapted(dense: Any, inputs: dict[str, Tensor]) -> Any:
    mlp = next(module for name, module in dense.named_modules() if name.endswith(".mlp"))
    layer = Adapted(mlp.fc1.in_features, mlp.fc1.out_features)
    layer.load_state_dict(mlp.fc1.state_dict())
    mlp.fc1 = layer
    return dense(**inputs)


@pytest.mark.parametrize("call", [attention_maps, under_autocast, hooked_inside, adapted])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_transformers_alone_can_do_is_left_to_it(architecture: str, call: Callable[..., Any]) -> None:
    dense, plain, inputs = accelerated(architecture), tower(architecture), tower_inputs(architecture)
    ours = passes(dense)
    with torch.no_grad():
        untouched = plain(**inputs)
        mine, theirs = call(dense, inputs), call(plain, inputs)
    assert not ours
    assert list(mine.keys()) == list(theirs.keys())
    assert torch.equal(mine.pooler_output, theirs.pooler_output)
    if call is not attention_maps:
        assert (mine.pooler_output.float() - untouched.pooler_output).abs().max() > 1e-3


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_weights_of_several_dtypes_are_left_to_transformers(architecture: str) -> None:
    told = []
    for model in (accelerated(architecture), tower(architecture)):
        next(module for module in model.modules() if isinstance(module, nn.LayerNorm)).double()
        with torch.no_grad(), pytest.raises(RuntimeError) as caught:
            model(**tower_inputs(architecture))
        told.append(str(caught.value))
    assert told[0] == told[1]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_compiled_it_is_transformers_tower(architecture: str) -> None:
    dense, inputs = accelerated(architecture), tower_inputs(architecture, torch.tensor([[1, 4, 6]]), images=1)
    ours = passes(dense)
    with torch.no_grad():
        found = torch.compile(dense, backend="eager")(**inputs).pooler_output
        assert not ours
        assert torch.equal(found, tower(architecture)(**inputs).pooler_output)


def test_bounds_computed_beforehand_are_used() -> None:
    dense, plain, inputs = accelerated("qwen2_vl"), tower("qwen2_vl"), tower_inputs("qwen2_vl")
    rows = len(inputs["hidden_states"])
    whole = {"cu_seqlens": torch.tensor([0, rows], dtype=torch.int32)}
    with torch.no_grad():
        mine = dense(**inputs, **whole).pooler_output
        assert torch.equal(mine, plain(**inputs, **whole).pooler_output)
        assert not torch.allclose(mine, plain(**inputs).pooler_output, atol=1e-3)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_configs_wishes_are_heeded_at_every_call(architecture: str) -> None:
    dense, inputs = accelerated(architecture), tower_inputs(architecture)
    ours = passes(dense)
    with torch.no_grad():
        assert dense(**inputs).hidden_states is None
        dense.config.output_hidden_states = True
        assert len(dense(**inputs).hidden_states) == 4
        dense.config.return_dict = False
        assert isinstance(dense(**inputs), tuple)
    assert len(ours) == 3


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_hooks_on_the_tower_itself_and_inference_mode(architecture: str) -> None:
    dense, inputs = tower(architecture), tower_inputs(architecture)
    seen: list[Tensor] = []
    dense.register_forward_hook(lambda module, args, output: seen.append(output.pooler_output))
    infoprune_rt.accelerate(dense)
    with torch.inference_mode():
        dense.forward.compact  # noqa: B018  (made again below: its weights must not be inference tensors)
        scale_in_place(dense)
        out = dense(**inputs).pooler_output
    assert seen[0] is out
    assert not any(parameter.is_inference() for parameter in dense.forward.compact.parameters())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_compact_towers_are_left_as_they_are(architecture: str) -> None:
    adapter, config = adapter_by_name(architecture), vision_config(architecture)
    blocks = [spec.to_dict() for spec in dense_specs(adapter.shape(config))]
    compact = adapter.compact_class(adapter.compact_config(config, blocks)).eval()
    vlm = full_model(architecture)
    adapter.replace_tower(vlm, compact)
    assert infoprune_rt.accelerate(vlm) is infoprune_rt.restore(vlm) is vlm
    assert adapter.tower_of(vlm) is compact
    assert "forward" not in vars(compact)


def with_siglip() -> PreTrainedModel:
    sizes = {"hidden_size": 12, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    vision = SiglipVisionConfig(**sizes, image_size=8, patch_size=4)
    return LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=LlamaConfig(**sizes, vocab_size=50))
    )


def subclassed() -> nn.Module:
    dense = tower("clip")
    dense.__class__ = type("SlicedTower", (type(dense),), {})
    return dense


def with_an_adapter() -> nn.Module:
    dense = tower("qwen2_vl")
    dense.blocks[1].mlp.fc1 = Adapted(40, 120)
    return dense


def offloaded() -> nn.Module:
    dense = tower("clip")
    dense.forward = dense.forward
    return dense


def half_converted() -> nn.Module:
    dense = tower("clip")
    dense.encoder.layers[2].to(torch.bfloat16)
    return dense


def narrowed() -> nn.Module:
    dense = tower("clip")
    dense.encoder.layers[1].mlp.fc1 = nn.Linear(42, 90)
    dense.encoder.layers[1].mlp.fc2 = nn.Linear(90, 42)
    return dense


SMALL_BERT = {"hidden_size": 12, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: nn.Linear(2, 2), r"^Linear cannot be accelerated: it is no transformers model$"),
        (
            lambda: BertModel(BertConfig(**SMALL_BERT)),
            r"^BertModel cannot be accelerated: model type 'bert' is not supported; supported are qwen2_vl,.*llava",
        ),
        (
            lambda: CLIPVisionModelWithProjection(vision_config("clip")),
            r"^CLIPVisionModelWithProjection cannot be accelerated: .* has no clip tower",
        ),
        (with_siglip, r"^LlavaForConditionalGeneration cannot be .*'siglip_vision_model' tower, but clip works on"),
        (subclassed, r"^SlicedTower cannot be accelerated: its tower is a SlicedTower, not a CLIPVisionModel$"),
        (with_an_adapter, r"not as transformers builds it: blocks\.1\.mlp\.fc1 is a Adapted$"),
        (offloaded, r"^CLIPVisionModel cannot be accelerated: its tower's forward was replaced by something else"),
        (half_converted, r"its parameters differ in dtype or device$"),
        (narrowed, r"'blocks\.1\.ffn\.fc1_weight' has shape \(90, 42\), not \(100, 42\)$"),
    ],
)
def test_other_models_are_refused_and_left_as_they_were(make: Callable[[], nn.Module], told: str) -> None:
    model = make()
    before = dict(vars(model))
    with pytest.raises(InfopruneError, match=told):
        infoprune_rt.accelerate(model)
    assert vars(model) == before


def test_restore_refuses_what_could_never_be_accelerated() -> None:
    with pytest.raises(InfopruneError, match=r"^Linear cannot be accelerated: it is no transformers model$"):
        infoprune_rt.restore(nn.Linear(2, 2))


def test_weights_that_a_fused_optimiser_changed_are_used() -> None:
    """PyTorch does not count its steps as writing."""
    dense = accelerated("qwen2_vl")
    inputs = tower_inputs("qwen2_vl")
    optimiser = torch.optim.AdamW(dense.parameters(), lr=0.1, fused=True)
    with torch.no_grad():
        dense(**inputs)
    dense.train()(**inputs).pooler_output.square().mean().backward()
    optimiser.step()
    dense.eval()
    with torch.no_grad():
        mine = dense(**inputs).pooler_output
        theirs = infoprune_rt.restore(dense)(**inputs).pooler_output
    assert torch.allclose(mine, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))


def test_a_forward_that_others_put_in_place_is_not_passed_over() -> None:
    dense = accelerated("qwen2_vl")
    ours = dense.forward
    dense.forward = lambda *args, **kwargs: ours(*args, **kwargs)
    with pytest.raises(InfopruneError, match="forward was replaced by something else, as offloading does"):
        infoprune_rt.restore(dense)
