"""Only the tower comes out of a checkpoint, exactly, in any layout; whatever is wrong is named."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from seven_b import LOAD, SHARDS, write_sparse_7b
from small_towers import ARCHITECTURES, tower, tower_inputs, vision_config, vlm_config
from torch import Tensor
from transformers import AutoModelForImageTextToText, BertConfig

from infoprune_rt.errors import InfopruneError
from infoprune_rt.towers import adapter_by_name
from infoprune_rt.towers.loading import load_tower, stored_dtype

LAYOUTS = [
    *[("qwen2_vl", prefix) for prefix in ("visual.", "model.visual.", "")],
    *[("clip", prefix) for prefix in ("vision_tower.vision_model.", "vision_tower.", "model.vision_tower.", "")],
    *[("clip", prefix) for prefix in ("model.vision_tower.vision_model.", "vision_model.")],
]


def write_checkpoint(folder: Path, architecture: str, prefix: str, shards: int = 3) -> dict[str, Tensor]:
    """A sharded checkpoint with the tower below ``prefix`` (and a language model, unless the tower is alone)."""
    alone = prefix in ("", "vision_model.")
    (vision_config(architecture) if alone else vlm_config(architecture)).save_pretrained(folder)
    state = {prefix + name: tensor for name, tensor in tower(architecture).state_dict().items()}
    if not alone:
        state |= {f"language_model.layers.{i}.weight": torch.randn(3, 5) for i in range(4)}
    parts = [dict(list(state.items())[i::shards]) for i in range(shards)]
    names = [f"model-{i + 1:05d}-of-{shards:05d}.safetensors" for i in range(shards)]
    for name, part in zip(names, parts, strict=True):
        save_file(part, folder / name)
    weight_map = {key: name for name, part in zip(names, parts, strict=True) for key in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return state


@pytest.mark.parametrize(("architecture", "prefix"), LAYOUTS)
def test_every_layout_gives_the_same_tower(tmp_path: Path, architecture: str, prefix: str) -> None:
    write_checkpoint(tmp_path, architecture, prefix)
    dense, loaded = tower(architecture), load_tower(tmp_path)
    assert type(loaded) is type(dense)
    assert not loaded.training
    assert loaded.state_dict().keys() == dense.state_dict().keys()
    inputs = tower_inputs(architecture)
    with torch.no_grad():
        assert torch.equal(loaded(**inputs).pooler_output, dense(**inputs).pooler_output)
    for name, buffer in dense.named_buffers():
        assert torch.equal(loaded.get_buffer(name), buffer)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_transformers_saves_is_read(tmp_path: Path, architecture: str) -> None:
    """A full model and a tower alone, written by transformers itself."""
    vlm = AutoModelForImageTextToText.from_config(vlm_config(architecture)).to(torch.bfloat16)
    dense = adapter_by_name(architecture).tower_of(vlm)
    vlm.save_pretrained(tmp_path / "vlm", max_shard_size="60KB")
    dense.save_pretrained(tmp_path / "tower")
    assert len(list((tmp_path / "vlm").glob("*.safetensors"))) > 1
    for folder in ("vlm", "tower"):
        loaded = load_tower(tmp_path / folder)
        assert stored_dtype(tmp_path / folder) == loaded.dtype == torch.bfloat16
        for name, tensor in dense.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], tensor), name


def test_dtype_converts_parameters_and_leaves_rotary_frequencies(tmp_path: Path) -> None:
    state = write_checkpoint(tmp_path, "qwen2_vl", "visual.")
    loaded = load_tower(tmp_path, dtype=torch.bfloat16)
    assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}
    assert loaded.config.dtype == torch.bfloat16
    assert torch.equal(loaded.blocks[1].mlp.fc2.weight, state["visual.blocks.1.mlp.fc2.weight"].bfloat16())
    assert loaded.rotary_pos_emb.inv_freq.dtype == torch.float32
    assert loaded.rotary_pos_emb.inv_freq[0] == 1


def test_mixed_dtypes_are_loaded_without_loss(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, "clip", "vision_tower.", shards=1)
    edit(tmp_path, "vision_tower.pre_layrnorm.weight", torch.Tensor.half)
    assert stored_dtype(tmp_path) == torch.float32
    assert load_tower(tmp_path).dtype == torch.float32


def test_the_loaded_tower_does_not_depend_on_its_files(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, "clip", "vision_tower.", shards=1)
    loaded = load_tower(tmp_path)
    before = {name: tensor.clone() for name, tensor in loaded.state_dict().items()}
    (shard,) = tmp_path.glob("*.safetensors")
    shard.write_bytes(b"\xff" * shard.stat().st_size)
    assert all(torch.equal(tensor, before[name]) for name, tensor in loaded.state_dict().items())


def test_buffers_that_older_files_carry_are_ignored(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, "clip", "vision_tower.vision_model.", shards=1)
    edit(tmp_path, "vision_tower.vision_model.embeddings.position_ids", lambda _: torch.full((1, 26), 7))
    assert torch.equal(load_tower(tmp_path).embeddings.position_ids, torch.arange(26)[None])


def edit(folder: Path, name: str, change: Callable[[Tensor], Tensor | None]) -> None:
    """Change, add or (None) remove one tensor of a checkpoint of one shard, index included."""
    (shard,) = folder.glob("*.safetensors")
    state = load_file(shard)
    changed = change(state.pop(name, torch.zeros(1)))
    if changed is not None:
        state[name] = changed
    save_file(state, shard)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(state, shard.name)}))


def with_nan(tensor: Tensor) -> Tensor:
    tensor[-1] = float("nan")
    return tensor


@pytest.mark.parametrize(
    ("name", "change", "sentence"),
    [
        ("blocks.2.norm1.bias", lambda _: None, "lack 1 of the tower's tensors, first 'visual.blocks.2.norm1.bias'"),
        ("blocks.3.norm1.bias", lambda t: t, "first 'visual.blocks.3.norm1.bias'; config and weights belong to diff"),
        ("merger.mlp.0.bias", lambda t: t[1:].clone(), r"'visual.merger.mlp.0.bias' has shape \(159,\), .* \(160,\)"),
        ("merger.mlp.0.bias", with_nan, "'visual.merger.mlp.0.bias' holds NaN or infinite values"),
        ("merger.mlp.0.bias", lambda t: t / 0, "'visual.merger.mlp.0.bias' holds NaN or infinite values"),
        ("merger.mlp.0.bias", lambda t: t.to(torch.int8), "stored as I8; take a checkpoint that is not quantised"),
    ],
)
def test_a_bad_tensor_is_named(
    tmp_path: Path, name: str, change: Callable[[Tensor], Tensor | None], sentence: str
) -> None:
    write_checkpoint(tmp_path, "qwen2_vl", "visual.", shards=1)
    edit(tmp_path, f"visual.{name}", change)
    with pytest.raises(InfopruneError, match=sentence):
        load_tower(tmp_path)


def test_bad_weight_files_are_named(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, "qwen2_vl", "visual.")
    index = tmp_path / "model.safetensors.index.json"
    shard = tmp_path / "model-00002-of-00003.safetensors"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1])
    with pytest.raises(InfopruneError, match=r"00002-of-00003.safetensors is not a whole safetensors file"):
        load_tower(tmp_path)
    shard.unlink()
    with pytest.raises(InfopruneError, match=r"00002-of-00003.safetensors is missing, but the checkpoint's index"):
        load_tower(tmp_path)
    save_file({"other": torch.zeros(1)}, shard)
    with pytest.raises(InfopruneError, match=r"00002-of-00003.safetensors lacks the tensor 'visual\."):
        load_tower(tmp_path)
    index.write_text('{"weight_map": {"a": 1}}')
    with pytest.raises(InfopruneError, match=r'index.json has no "weight_map"'):
        load_tower(tmp_path)
    index.write_text('{"weight_map": {"model.embed_tokens.weight": "a.safetensors"}}')
    with pytest.raises(InfopruneError, match="hold no tensor of a qwen2_vl tower"):
        load_tower(tmp_path)
    index.write_text("{")
    with pytest.raises(InfopruneError, match=r"index.json is not readable JSON"):
        load_tower(tmp_path)
    index.unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(InfopruneError, match=r"only pickled ones \(pytorch_model.bin\), which are never loaded"):
        load_tower(tmp_path)


def test_bad_configs_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(InfopruneError, match=r"no such model: .*nowhere is neither a directory nor a hub id"):
        load_tower(tmp_path / "nowhere")
    with pytest.raises(InfopruneError, match=r"has no config.json"):
        load_tower(tmp_path)
    BertConfig().save_pretrained(tmp_path)
    with pytest.raises(InfopruneError, match="'bert' is no vision-language model; supported are qwen2_vl, "):
        load_tower(tmp_path)
    path = tmp_path / "config.json"
    for raw, sentence in (
        ("{", "config.json is not readable JSON"),
        ("[]", "config.json must hold a JSON object, not a list"),
        ("{}", "model type None is no vision-language model"),
        ('{"model_type": "idefics3", "vision_config": {}}', "'idefics3' is not supported; supported are qwen2_vl"),
        ('{"model_type": "infoprune_clip_vision"}', "is a compact checkpoint already"),
        ('{"model_type": "qwen2_vl_vision", "depth": "many"}', "is not a sound qwen2_vl_vision config"),
        (
            '{"model_type": "llava", "vision_config": {"model_type": "siglip_vision_model"}}',
            "a 'siglip_vision_model' tower",
        ),
    ):
        path.write_text(raw)
        with pytest.raises(InfopruneError, match=re.escape(sentence)):
            load_tower(tmp_path)


def test_the_7b_tower_loads_within_4_gib(tmp_path: Path) -> None:
    """In float32, the larger case, from shards with the real model's names, sizes and layout."""
    known = write_sparse_7b(tmp_path)
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) == SHARDS
    assert sum(path.stat().st_size for path in files) > 16.5e9
    run = subprocess.run([sys.executable, "-c", LOAD, tmp_path], capture_output=True, text=True, check=True)
    report = json.loads(run.stdout.splitlines()[-1])
    assert report["parameters"] == 675_759_104
    assert report["samples"] == {name: t.float().flatten()[::997].tolist() for name, t in known.items()}
    assert report["peak_bytes"] <= 4 * 2**30
