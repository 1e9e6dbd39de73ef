"""The compact checkpoint: bit-equal when whole, refused by name when not, absent when writing failed."""

from __future__ import annotations

import dataclasses
import json
import re
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from compact_models import ARCHITECTURES, compact_tower, make_plan, tower_inputs, vision_config
from transformers import AutoModel

from infoprune_rt import checkpoint, shards
from infoprune_rt.errors import InfopruneError
from infoprune_rt.runtime.encoder import CompactEncoder

STATE_FILE = "infoprune.safetensors"


def save(directory: Path, architecture: str = "qwen2_vl", dtype: torch.dtype = torch.float32) -> CompactEncoder:
    tower = compact_tower(architecture, dtype)
    checkpoint.save_tower(directory, tower.config, tower.state_dict(), make_plan(architecture))
    return tower


def assert_same_weights(one: torch.nn.Module, other: torch.nn.Module) -> None:
    mine, theirs = one.state_dict(), other.state_dict()
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        assert tensor.dtype == theirs[name].dtype
        assert torch.equal(tensor, theirs[name]), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_auto_model_gives_back_the_same_tower(tmp_path: Path, architecture: str, dtype: torch.dtype) -> None:
    tower = save(tmp_path / "tower", architecture, dtype)
    loaded = AutoModel.from_pretrained(tmp_path / "tower")
    assert type(loaded) is type(tower)
    assert not loaded.training
    assert_same_weights(loaded, tower)
    assert loaded.plan == make_plan(architecture)
    inputs = tower_inputs(architecture)
    with torch.no_grad():
        assert torch.equal(loaded(**inputs).pooler_output, tower(**inputs).pooler_output)


def test_loading_converts_to_a_dtype(tmp_path: Path) -> None:
    save(tmp_path / "tower")
    for dtype in (torch.bfloat16, "bfloat16"):
        assert CompactEncoder.from_pretrained(tmp_path / "tower", dtype=dtype).dtype == torch.bfloat16


def test_save_pretrained_copies_the_image_processor_along(tmp_path: Path) -> None:
    tower = compact_tower("clip")
    source = tmp_path / "source"
    source.mkdir()
    (source / "preprocessor_config.json").write_text('{"image_mean": [0.5, 0.5, 0.5]}')
    (source / "pytorch_model.bin").write_text("not to be copied")
    tower.source_dir = source
    tower.save_pretrained(tmp_path / "first")
    CompactEncoder.from_pretrained(tmp_path / "first").save_pretrained(tmp_path / "second")
    assert str(tmp_path) not in (tmp_path / "second" / "config.json").read_text()
    assert sorted(p.name for p in (tmp_path / "second").iterdir()) == [
        "config.json",
        STATE_FILE,
        "manifest.json",
        "plan.json",
        "preprocessor_config.json",
    ]
    assert_same_weights(AutoModel.from_pretrained(tmp_path / "second"), tower)


def test_save_pretrained_replaces_checkpoints_but_nothing_else(tmp_path: Path) -> None:
    tower = compact_tower("clip")
    for _ in range(2):
        tower.save_pretrained(tmp_path / "again")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("years of work")
    with pytest.raises(InfopruneError, match="exists already"):
        tower.save_pretrained(tmp_path / "other")
    tower.plan = None
    with pytest.raises(InfopruneError, match=r"carries no plan; set its \.plan"):
        tower.save_pretrained(tmp_path / "new")


def test_large_towers_are_written_in_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "MAX_SHARD_BYTES", 9_000)
    tower = save(tmp_path / "tower")
    index = json.loads((tmp_path / "tower" / "infoprune.safetensors.index.json").read_text())
    names = sorted(set(index["weight_map"].values()))
    assert len(names) > 2
    assert names[0] == f"infoprune-00001-of-{len(names):05d}.safetensors"
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in tower.state_dict().values())
    assert_same_weights(CompactEncoder.from_pretrained(tmp_path / "tower"), tower)


def flip_last_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:-1]), "truncated or altered"),
    "tampered": (flip_last_byte, "was altered"),
    "missing": (Path.unlink, "is missing"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_refused_by_the_files_name(tmp_path: Path, damage: str) -> None:
    act, told = DAMAGE[damage]
    save(tmp_path / "whole")
    checkpoint.verify(tmp_path / "whole")
    for name in ("config.json", STATE_FILE, "plan.json"):
        directory = tmp_path / name
        shutil.copytree(tmp_path / "whole", directory)
        act(directory / name)
        for read in (checkpoint.verify, checkpoint.load_tower):
            with pytest.raises(InfopruneError, match=f"{re.escape(str(directory / name))} .*{told}"):
                read(directory)


def test_foreign_weights_and_manifests_are_refused(tmp_path: Path) -> None:
    directory = tmp_path / "tower"
    save(directory)
    (directory / "model.safetensors").write_bytes(b"")
    with pytest.raises(InfopruneError, match=r"model\.safetensors does not belong to the checkpoint"):
        checkpoint.verify(directory)
    (directory / "model.safetensors").unlink()
    manifest = directory / "manifest.json"
    written = json.loads(manifest.read_text())
    for change, told in [
        ({"format": 2}, "has format 2, but this version of infoprune reads format 1"),
        ({"kind": "llm"}, "unknown kind 'llm'"),
        ({"files": written["files"] | {"../secret": {"bytes": 1, "sha256": ""}}}, "a file outside its directory"),
        ({"files": [1]}, "not a readable manifest"),
        ({"files": {}}, r"does not list config\.json"),
    ]:
        manifest.write_text(json.dumps(written | change))
        with pytest.raises(InfopruneError, match=told):
            checkpoint.verify(directory)
    manifest.unlink()
    with pytest.raises(InfopruneError, match=r"is not a compact checkpoint: it has no manifest\.json"):
        CompactEncoder.from_pretrained(directory)


def test_what_does_not_fit_together_is_never_written(tmp_path: Path) -> None:
    tower, plan = compact_tower("qwen2_vl"), make_plan("qwen2_vl")
    state = tower.state_dict()
    lacking = {name: tensor for name, tensor in state.items() if name != "blocks.0.ffn.up"}
    narrow = state | {"blocks.0.ffn.up": torch.zeros(24, 6)}
    fewer = dataclasses.replace(plan, blocks=(dataclasses.replace(plan.blocks[0], heads=()), *plan.blocks[1:]))
    denser = dataclasses.replace(plan, blocks=(*plan.blocks[:1], plan.blocks[3], *plan.blocks[2:]))
    linear = dataclasses.replace(plan.blocks[4], ffn=dataclasses.replace(plan.blocks[4].ffn, between=None))
    thinner = dataclasses.replace(plan.blocks[5], ffn=dataclasses.replace(plan.blocks[5].ffn, fitted_linear=4))
    for bad_state, bad_plan, told in [
        (lacking, plan, r"lack 'blocks\.0\.ffn\.up'"),
        (state | {"extra": torch.zeros(1)}, plan, "have an unexpected 'extra'"),
        (narrow, plan, r"'blocks\.0\.ffn\.up' has shape \(24, 6\), not \(24, 7\)"),
        (state, fewer, "block 0: the plan keeps 0 heads, but the tower's config has 1"),
        (state, denser, "block 1: the plan keeps 2 heads, but the tower's config has 0"),
        (
            state,
            dataclasses.replace(plan, blocks=(*plan.blocks[:4], linear, plan.blocks[5])),
            "block 4: the plan's activation between factors is None, but the tower's config has 'silu'",
        ),
        (
            state,
            dataclasses.replace(plan, blocks=(*plan.blocks[:5], thinner)),
            "block 5: the plan's linear path has rank 4, but the tower's config has 5",
        ),
    ]:
        with pytest.raises(InfopruneError, match=told):
            checkpoint.save_tower(tmp_path / "tower", tower.config, bad_state, bad_plan)
    with pytest.raises(InfopruneError, match="not the config of a compact tower"):
        checkpoint.save_tower(tmp_path / "tower", vision_config("clip"), state, plan)
    assert not list(tmp_path.iterdir())


@contextmanager
def file_size_limit(num_bytes: int) -> Iterator[None]:
    """The kernel refuses to grow any file beyond this, as a full disk would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for limit in (10_000, 2_000, 0):  # inside the weights, and at the very start
        with file_size_limit(limit), pytest.raises(InfopruneError, match="nothing was left behind"):
            save(tmp_path / "tower")
        assert not list(tmp_path.iterdir())
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1_000))
    with pytest.raises(InfopruneError, match="not enough disk space"):
        save(tmp_path / "tower")
    assert not list(tmp_path.iterdir())


def test_an_interrupted_write_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = save(tmp_path / "tower")

    def interrupt(path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "_record", interrupt)
    tower = compact_tower("qwen2_vl")
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save_tower(
            tmp_path / "tower", tower.config, tower.state_dict(), make_plan("qwen2_vl"), overwrite=True
        )
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["tower"]
    assert_same_weights(CompactEncoder.from_pretrained(tmp_path / "tower"), old)


def test_options_and_places_that_do_not_exist_are_told(tmp_path: Path) -> None:
    save(tmp_path / "tower", "clip")
    with pytest.raises(InfopruneError, match="does not take 'device_map'"):
        CompactEncoder.from_pretrained(tmp_path / "tower", device_map="auto")
    with pytest.raises(InfopruneError, match="unknown dtype 'bfloat17'"):
        CompactEncoder.from_pretrained(tmp_path / "tower", dtype="bfloat17")
    with pytest.raises(InfopruneError, match="holds a CompactCLIPTower, not a CompactQwen2VLTower"):
        type(compact_tower("qwen2_vl")).from_pretrained(tmp_path / "tower")
    with pytest.raises(InfopruneError, match=r"no such model: .*nowhere is neither a directory nor a hub id"):
        CompactEncoder.from_pretrained(tmp_path / "nowhere")
