"""Of a hub model only what is needed is fetched, never anything pickled, and all of it at one commit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from compact_models import compact_tower, full_model, make_plan
from huggingface_hub import snapshot_download
from local_hub import LocalHub, serving

from infoprune_rt import checkpoint, hub, load_vlm, shards
from infoprune_rt.compression import compress_checkpoint
from infoprune_rt.compression import make_plan as plan_of
from infoprune_rt.errors import InfopruneError
from infoprune_rt.hub import resolve_model_dir
from infoprune_rt.inspection import inspect_model
from infoprune_rt.model_loading import describe_source
from infoprune_rt.runtime.encoder import CompactEncoder
from infoprune_rt.towers.loading import load_tower
from infoprune_rt.vlm import rest_of_vlm

NAME = "someone/some-model_1.5"


@pytest.fixture
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(hub, "_snapshots", {})
    with serving(LocalHub(NAME)) as local:
        fetch = partial(snapshot_download, endpoint=local.url, cache_dir=tmp_path / "cache")
        monkeypatch.setattr(hub, "snapshot_download", fetch)
        yield local


def write_dense(folder: Path, seed: int) -> dict[str, str]:
    """A sharded dense model with other things beside it; returns its index."""
    torch.manual_seed(seed)
    full_model("clip").save_pretrained(folder, max_shard_size="4KB")
    (folder / "pytorch_model.bin").write_bytes(b"pickled")
    (folder / "tokenizer.json").write_text("{}")
    index: dict[str, str] = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    return index


def test_the_tower_alone_is_fetched_at_one_commit(remote: LocalHub, tmp_path: Path) -> None:
    index = write_dense(tmp_path / "first", 1)
    write_dense(tmp_path / "second", 2)
    first = remote.push(tmp_path / "first")
    source = describe_source(NAME)
    assert remote.sent(".json") == {path.name for path in (tmp_path / "first").glob("*.json")}
    assert not remote.sent(".safetensors")
    remote.push(tmp_path / "second")  # between the look at the config and that at the weights
    tower = load_tower(NAME)
    ours = {file for name, file in index.items() if "vision_tower" in name}
    assert remote.sent(".safetensors") == ours < set(index.values())
    assert not remote.sent(".bin")
    assert {commit for commit, _ in remote.asked} == {first}
    for name, tensor in load_tower(tmp_path / "first").state_dict().items():
        assert torch.equal(tower.state_dict()[name], tensor)
    assert resolve_model_dir(NAME) == source.directory
    before = len(remote.asked)
    load_tower(source.directory)
    assert len(remote.asked) == before


def test_a_full_model_is_fetched_whole_when_it_is_compressed_whole(remote: LocalHub, tmp_path: Path) -> None:
    index = write_dense(tmp_path / "dense", 1)
    remote.push(tmp_path / "dense")
    source = describe_source(NAME)
    plan = plan_of(source.architecture, source.shape)
    compress_checkpoint(NAME, tmp_path / "tower", plan, lambda: [], tower_only=True)
    assert remote.sent(".safetensors") < set(index.values())
    compress_checkpoint(NAME, tmp_path / "full", plan, lambda: [])
    assert remote.sent(".safetensors") == set(index.values())


def test_a_single_file_is_fetched_too(remote: LocalHub, tmp_path: Path) -> None:
    full_model("clip").save_pretrained(tmp_path / "dense")
    remote.push(tmp_path / "dense")
    load_tower(NAME)
    assert remote.sent(".safetensors") == {"model.safetensors"}


def test_a_compact_model_is_fetched_as_far_as_it_is_opened(
    remote: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "MAX_SHARD_BYTES", 20_000)
    model, tower = full_model("clip"), compact_tower("clip")
    rest = rest_of_vlm(model)
    checkpoint.save_vlm(tmp_path / "out", model.config, tower.config, tower.state_dict(), rest, make_plan("clip"), None)
    remote.push(tmp_path / "out")
    inspect_model(NAME, 10)
    assert not remote.sent(".safetensors")
    CompactEncoder.from_pretrained(NAME)
    index = json.loads((tmp_path / "out" / shards.INDEX_NAME).read_text())["weight_map"]
    ours = {file for name, file in index.items() if name.startswith("tower.")}
    assert remote.sent(".safetensors") == ours < set(index.values())
    load_vlm(NAME)
    assert remote.sent(".safetensors") == set(index.values())
    # What was fetched is judged as in any directory.
    (resolve_model_dir(NAME) / max(index.values())).write_bytes(b"torn")
    with pytest.raises(InfopruneError, match="truncated or altered"):
        inspect_model(NAME, 10)


def test_what_the_hub_does_not_have_is_said(remote: LocalHub, tmp_path: Path) -> None:
    with pytest.raises(InfopruneError, match="no such model: someone/nothing is no directory here, and the hub"):
        resolve_model_dir("someone/nothing")
    index = write_dense(tmp_path / "dense", 1)
    shard = next(file for name, file in index.items() if "vision_tower" in name)
    (tmp_path / "dense" / shard).unlink()
    remote.push(tmp_path / "dense")
    with pytest.raises(InfopruneError, match=f"{shard} is missing, but the checkpoint's index names it"):
        load_tower(NAME)
