"""Full models with a compact tower: saved, loaded, generating; refused by stock transformers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from compact_models import ARCHITECTURES, BLOCKS, compact_tower, full_model, make_plan, model_inputs
from transformers import AutoModel, GenerationConfig, PreTrainedModel

from infoprune_rt import checkpoint
from infoprune_rt.errors import InfopruneError
from infoprune_rt.runtime.encoder import CompactEncoder
from infoprune_rt.towers import adapter_by_name
from infoprune_rt.vlm import compact_vlm, load_vlm, rest_of_checkpoint, rest_of_vlm


def compacted(architecture: str, tied: bool = False) -> PreTrainedModel:
    model = full_model(architecture, tied)
    compact_vlm(model, compact_tower(architecture))
    return model


def assert_same_model(one: PreTrainedModel, other: PreTrainedModel, architecture: str) -> None:
    mine, theirs = one.state_dict(), other.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in mine.items())
    inputs = model_inputs(architecture)
    with torch.no_grad():
        assert torch.equal(one(**inputs).logits, other(**inputs).logits)
        tokens = [m.generate(**inputs, max_new_tokens=5, do_sample=False) for m in (one, other)]
    assert torch.equal(*tokens)


@pytest.mark.parametrize(("architecture", "tied"), [("qwen2_vl", True), ("qwen2_vl", False), ("clip", False)])
def test_saved_and_loaded_is_the_same_model(tmp_path: Path, architecture: str, tied: bool) -> None:
    model = compacted(architecture, tied)
    model.save_pretrained(tmp_path / "compact")
    loaded = load_vlm(tmp_path / "compact")
    assert type(loaded) is type(model)
    assert not any(module.training for module in loaded.modules())
    assert_same_model(loaded, model, architecture)
    assert (loaded.lm_head.weight is loaded.get_input_embeddings().weight) is tied
    assert getattr(loaded.config.vision_config, adapter_by_name(architecture).depth_field) == len(BLOCKS)
    loaded.save_pretrained(tmp_path / "again")
    assert_same_model(load_vlm(tmp_path / "again"), model, architecture)


OLDER_NAMES = {
    "qwen2_vl": {"model.language_model.": "model."},
    "clip": {
        "model.language_model.": "language_model.model.",
        "lm_head.": "language_model.lm_head.",
        "model.multi_modal_projector.": "multi_modal_projector.",
    },
}


@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_weight_keeps_its_dtype_and_bits(tmp_path: Path, architecture: str, older: bool) -> None:
    model, tower = compacted(architecture), compact_tower(architecture, torch.float16)
    kinds = (torch.bfloat16, torch.float32, torch.float16, torch.bfloat16)
    mixed = {name: tensor.to(kinds[i % 4]) for i, (name, tensor) in enumerate(rest_of_vlm(model).items())}

    def stored_name(name: str) -> str:
        changes = OLDER_NAMES[architecture] if older else {}
        return next((new + name.removeprefix(now) for now, new in changes.items() if name.startswith(now)), name)

    rest = {stored_name(name): tensor for name, tensor in mixed.items()}
    assert (rest.keys() != mixed.keys()) is older
    plan = make_plan(architecture)
    checkpoint.save_vlm(tmp_path / "compact", model.config, tower.config, tower.state_dict(), rest, plan)
    loaded = load_vlm(tmp_path / "compact")
    found = rest_of_vlm(loaded)
    assert found.keys() == mixed.keys()
    for name, tensor in mixed.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name
    assert adapter_by_name(architecture).tower_of(loaded).dtype == torch.float16
    uniform = load_vlm(tmp_path / "compact", dtype=torch.float32)
    assert {parameter.dtype for parameter in uniform.parameters()} == {torch.float32}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_auto_model_gives_the_tower_of_a_full_models_checkpoint(tmp_path: Path, architecture: str) -> None:
    model = compacted(architecture)
    model.save_pretrained(tmp_path / "compact")
    tower = AutoModel.from_pretrained(tmp_path / "compact")
    expected = adapter_by_name(architecture).tower_of(model)
    assert type(tower) is type(expected)
    state = tower.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in expected.state_dict().items())


def test_dtype_and_generation_config(tmp_path: Path) -> None:
    source = tmp_path / "source"
    GenerationConfig(max_new_tokens=3, repetition_penalty=1.25, eos_token_id=1, pad_token_id=2).save_pretrained(source)
    (source / "tokenizer.json").write_text("{}")
    (source / "model.safetensors").write_text("not to be copied")
    model = compacted("qwen2_vl")
    model.config.name_or_path = str(source)
    model.save_pretrained(tmp_path / "compact")
    assert not (tmp_path / "compact" / "model.safetensors").exists()
    assert (tmp_path / "compact" / "tokenizer.json").read_text() == "{}"
    loaded = load_vlm(tmp_path / "compact", dtype=torch.bfloat16)
    assert loaded.generation_config.repetition_penalty == 1.25
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
    assert loaded.generate(**model_inputs("qwen2_vl"), do_sample=False).shape[1] <= 10 + 3


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_from_a_dense_checkpoints_files(tmp_path: Path, architecture: str) -> None:
    """The language model streams from the source's shards, whose tensor names are the published, older ones."""
    dense = full_model(architecture)
    dense.save_pretrained(tmp_path / "dense", max_shard_size="8KB")
    tower = compact_tower(architecture)
    rest = rest_of_checkpoint(tmp_path / "dense", adapter_by_name(architecture))
    plan = make_plan(architecture)
    checkpoint.save_vlm(
        tmp_path / "compact", dense.config, tower.config, tower.state_dict(), rest, plan, tmp_path / "dense"
    )
    compact_vlm(dense, tower)
    assert_same_model(load_vlm(tmp_path / "compact"), dense, architecture)
    with pytest.raises(InfopruneError, match="has no safetensors weights, neither model"):
        rest_of_checkpoint(tmp_path, adapter_by_name(architecture))


def test_the_tower_alone_reads_only_the_towers_files(tmp_path: Path) -> None:
    model = compacted("qwen2_vl")
    model.save_pretrained(tmp_path)
    rest = tmp_path / "infoprune-00002-of-00002.safetensors"
    rest.write_bytes(bytes(rest.stat().st_size))
    tower = CompactEncoder.from_pretrained(tmp_path)
    expected = model.model.visual.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in tower.state_dict().items())
    with pytest.raises(InfopruneError, match=r"infoprune-00002-of-00002\.safetensors was altered"):
        load_vlm(tmp_path)


def test_incomplete_language_models_and_lone_towers_are_refused(tmp_path: Path) -> None:
    model, tower = full_model("clip"), compact_tower("clip")
    state, plan = tower.state_dict(), make_plan("clip")
    for rest, told in [
        ({"lm_head.weight": torch.zeros(50, 16)}, "do not fit LlavaForConditionalGeneration: missing keys"),
        (full_model("clip").state_dict(), "unexpected keys"),
    ]:
        checkpoint.save_vlm(tmp_path / "vlm", model.config, tower.config, state, rest, plan, overwrite=True)
        with pytest.raises(InfopruneError, match=told):
            load_vlm(tmp_path / "vlm")
    tower.save_pretrained(tmp_path / "tower")
    with pytest.raises(InfopruneError, match="holds a tower alone, not a full model"):
        load_vlm(tmp_path / "tower")


STOCK = """
import sys
from transformers import AutoModel, AutoModelForImageTextToText, Qwen2VLForConditionalGeneration
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VisionTransformerPretrainedModel

tower, vlm = sys.argv[1:]
for model_class, directory in [
    (AutoModel, tower),
    (Qwen2VisionTransformerPretrainedModel, tower),
    (AutoModelForImageTextToText, vlm),
    (AutoModel, vlm),
    (Qwen2VLForConditionalGeneration, vlm),
    (Qwen2VisionTransformerPretrainedModel, vlm),
]:
    for options in ({}, {"ignore_mismatched_sizes": True}):
        try:
            model_class.from_pretrained(directory, **options)
        except (ValueError, KeyError, OSError) as error:
            print("refused", type(error).__name__)
        else:
            sys.exit(f"{model_class.__name__} opened {directory}")
"""


def test_stock_transformers_fails_loudly(tmp_path: Path) -> None:
    compact_tower("qwen2_vl").save_pretrained(tmp_path / "tower")
    compacted("qwen2_vl").save_pretrained(tmp_path / "vlm")
    command = [sys.executable, "-c", STOCK, str(tmp_path / "tower"), str(tmp_path / "vlm")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("refused") == 12
