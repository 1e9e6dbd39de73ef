from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_vqa import HEAD_DIM, NUM_BLOCKS, NUM_HEADS, TinyBatches, tiny_clip, tiny_vlm

from infoprune_rt.errors import InfopruneError
from infoprune_rt.pruning import head_training
from infoprune_rt.pruning.head_gates import TowerHeads, gate_heads
from infoprune_rt.pruning.head_methods import score_heads
from infoprune_rt.pruning.head_scores import HeadScores, magnitude_scores, michel_scores, random_scores
from infoprune_rt.pruning.head_training import HeadTrainingSettings
from infoprune_rt.pruning.task_loss import batch_indices, task_loss
from infoprune_rt.towers import adapter_for

ROWS = st.integers(1, 4).flatmap(
    lambda heads: st.lists(
        st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=heads, max_size=heads).map(tuple),
        min_size=1,
        max_size=4,
    ).map(tuple)
)


@given(rows=ROWS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25, deadline=None)
def test_scores_survive_the_file_bit_for_bit(tmp_path: Path, rows: tuple[tuple[float, ...], ...]) -> None:
    scores = HeadScores("michel", "clip", rows, {"steps": 3}, {"items": 5})
    scores.write(tmp_path / "s.json")
    assert HeadScores.read(tmp_path / "s.json") == scores


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 9}, "not head scores of format 1"),
        ({"method": "guess"}, "unknown score method 'guess'"),
        ({"scores": [[1.0, 2.0], [3.0]]}, "same number of heads"),
        ({"scores": []}, "one row per block"),
        ({"scores": 7}, "list of lists"),
        ({"scores": [[1.0, float("nan")]]}, "block 0, head 1: the score must be a finite number"),
        ({"scores": [[1.0, "x"]]}, "block 0, head 1"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_broken_score_files_are_told_by_name(tmp_path: Path, change: dict[str, object], message: str) -> None:
    path = tmp_path / "s.json"
    HeadScores("zeta", "clip", ((0.5, 0.25),)).write(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InfopruneError, match=message) as told:
        HeadScores.read(path)
    assert str(path) in str(told.value)


def test_unreadable_score_files_are_told(tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text("{")
    for name in ("s.json", "absent.json"):
        with pytest.raises(InfopruneError, match=f"{name} is not a readable file"):
            HeadScores.read(tmp_path / name)


def test_magnitude_is_the_norm_of_all_of_a_heads_weights() -> None:
    model = tiny_clip()
    layer = model.encoder.layers[1].self_attn
    rows = slice(2 * 3, 3 * 3)  # the third head of five, 3 wide
    parts = [p.weight[rows] for p in (layer.q_proj, layer.k_proj, layer.v_proj)] + [layer.out_proj.weight[:, rows]]
    expected = torch.cat([part.detach().double().flatten() for part in parts]).norm()
    scores = magnitude_scores(model, adapter_for(model.config))
    assert scores.tensor().shape == (2, 5)
    torch.testing.assert_close(scores.tensor()[1, 2], expected)


def test_random_scores_follow_their_seed() -> None:
    model = tiny_vlm()
    adapter = adapter_for(model.config)
    assert random_scores(model, adapter, seed=3) == random_scores(model, adapter, seed=3)
    assert random_scores(model, adapter, seed=3).scores != random_scores(model, adapter, seed=4).scores


def test_michel_sums_absolute_gradients_and_finds_the_dead_head() -> None:
    model = tiny_vlm(dtype=torch.float64)
    adapter = adapter_for(model.config)
    heads = TowerHeads.of(model, adapter)
    with torch.no_grad():
        heads.blocks[1].out_proj.weight[:, 2 * HEAD_DIM :] = 0
    batches = TinyBatches(dtype=torch.float64)
    scores = michel_scores(model, adapter, batches, steps=2, batch_size=3, seed=5).tensor()

    model.eval()
    by_hand = torch.zeros(NUM_BLOCKS, NUM_HEADS, dtype=torch.float64)
    items = batch_indices(len(batches), 0, 6, 5)
    for batch in (items[:3], items[3:]):
        gates = torch.ones(NUM_BLOCKS, NUM_HEADS, dtype=torch.float64, requires_grad=True)
        with gate_heads(heads.blocks, gates, HEAD_DIM):
            (slope,) = torch.autograd.grad(task_loss(model, batches.collate(batch)), gates)
        by_hand += slope.abs()
    torch.testing.assert_close(scores, by_hand / by_hand.norm(dim=1, keepdim=True), rtol=1e-5, atol=1e-8)
    saving = {"micro_batch": 2, "checkpoint_activations": True}
    again = michel_scores(model, adapter, batches, steps=2, batch_size=3, seed=5, **saving).tensor()
    torch.testing.assert_close(again, scores, rtol=1e-5, atol=1e-8)
    assert scores[1, 2] == 0
    assert (scores > 0).sum() == NUM_BLOCKS * NUM_HEADS - 1


@pytest.mark.parametrize("method", ["random", "magnitude", "michel", "zeta"])
def test_every_method_is_behind_one_door(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    monkeypatch.setattr(head_training, "plot", lambda *_: None)  # a second, and tested elsewhere
    model = tiny_vlm()
    adapter = adapter_for(model.config)
    settings = HeadTrainingSettings(steps=2, batch_size=2, gram_images=3)
    scores = score_heads(method, model, adapter, TinyBatches(), settings, tmp_path)  # type: ignore[arg-type]  # valid names
    assert scores.method == method
    assert HeadScores.read(tmp_path / "head-scores.json") == scores


def test_an_unknown_method_is_told(tmp_path: Path) -> None:
    model = tiny_vlm()
    with pytest.raises(InfopruneError, match="known are zeta, random, magnitude, michel"):
        score_heads("luck", model, adapter_for(model.config), TinyBatches(), HeadTrainingSettings(), tmp_path)  # type: ignore[arg-type]  # the mistake under test
