"""The tiny VLM: tokenizer, training forward, resumable training, and the shipped weights themselves."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from infoprune_rt.demo import tiny_training
from infoprune_rt.demo.handwriting import read_handwriting, write_handwriting
from infoprune_rt.demo.muon import orthogonalised
from infoprune_rt.demo.scenes import ask, draw_scene
from infoprune_rt.demo.tiny_batches import CELLS, BatchMaker, patchify
from infoprune_rt.demo.tiny_forward import TinyForward, block_mask
from infoprune_rt.demo.tiny_training import Phase, Recipe, train
from infoprune_rt.demo.tiny_vlm import SHIPPED, build_config, build_model, build_processor
from infoprune_rt.errors import InfopruneError
from infoprune_rt.evaluation.prompt import messages_for
from infoprune_rt.evaluation.report import evaluate
from infoprune_rt.model_loading import load_dense_vlm


@pytest.fixture(scope="module")
def processor():
    return build_processor()


@given(seed=st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_every_question_and_answer_is_in_the_vocabulary(processor, seed: int) -> None:
    tokenizer = processor.tokenizer
    rng = np.random.default_rng(seed)
    for question in ask(rng, draw_scene(rng, "train")[1]):
        prompt = processor.apply_chat_template(messages_for(question.text), tokenize=False, add_generation_prompt=True)
        assert tokenizer.unk_token_id not in tokenizer(prompt).input_ids
        answer = tokenizer(question.answer).input_ids
        assert tokenizer.decode([*answer, tokenizer.eos_token_id], skip_special_tokens=True).strip() == question.answer


def test_training_patches_are_the_image_processors(processor) -> None:
    rng = np.random.default_rng(5)
    pictures = np.stack([draw_scene(rng, "train")[0] for _ in range(3)])
    expected = processor.image_processor(list(pictures), return_tensors="pt").pixel_values
    assert torch.equal(patchify(pictures).flatten(0, 1), expected)


def test_packed_training_forward_equals_the_models_own(processor) -> None:
    """Every packed question must see what it would see alone behind its image."""
    torch.manual_seed(0)
    model = build_model(build_config(processor.tokenizer)).double()
    model.set_attn_implementation("eager")
    batch = BatchMaker(processor.tokenizer, seed=1).batch(0, 2)
    forward = TinyForward(model)
    forward.vision_cos, forward.vision_sin = forward.vision_cos.double(), forward.vision_sin.double()
    with torch.no_grad():
        merged = forward.merged_tokens(batch.patches.double())
        cos, sin = model.model.language_model.rotary_emb(merged, batch.positions)
        states = forward.text_states(merged, batch.ids, block_mask(batch.segments, torch.float64), cos, sin)
        packed = model.lm_head(states)
        for image in range(2):
            for question in range(1, 9):
                chosen = (batch.segments[image] == 0) | (batch.segments[image] == question)
                ids = batch.ids[image][chosen][None]
                alone = model(
                    input_ids=ids,
                    pixel_values=batch.patches[image].double(),
                    image_grid_thw=torch.tensor([[1, 2 * CELLS, 2 * CELLS]]),
                    mm_token_type_ids=(ids == model.config.image_token_id).int(),
                ).logits[0]
                # transformers computes softmax and rotary angles in float32 even here.
                torch.testing.assert_close(packed[image][chosen], alone, rtol=1e-4, atol=1e-4)


@given(seed=st.integers(0, 10**6), rows=st.integers(1, 40), columns=st.integers(1, 40))
@settings(max_examples=30, deadline=None)
def test_muon_brings_singular_values_together(seed: int, rows: int, columns: int) -> None:
    """The published coefficients map (0.01, 1] into about (0.7, 1.2)."""
    generator = torch.Generator().manual_seed(seed)
    rank = min(rows, columns)
    u, _ = torch.linalg.qr(torch.randn(rows, rank, generator=generator))
    v, _ = torch.linalg.qr(torch.randn(columns, rank, generator=generator))
    sigma = 0.05 + 0.95 * torch.rand(rank, generator=generator)
    found = torch.linalg.svdvals(orthogonalised(u @ torch.diag(sigma) @ v.mT))
    assert found.min() > 0.6
    assert found.max() < 1.3


def test_interrupted_training_ends_where_an_uninterrupted_one_does(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function: function)  # seconds of compiling, the same arithmetic
    recipe = Recipe(
        batch_size=2,
        phases=(Phase("tower", 2, 1e-3, 0.5), Phase("joint", 3, 1e-3, 0.1)),
        log_every=2,
        checkpoint_every=1,
    )
    train(recipe, tmp_path / "whole", tmp_path / "whole-model")
    step = tiny_training.TinyTraining.step

    def interrupted(self, number, batch):
        if number == 3:
            raise KeyboardInterrupt
        return step(self, number, batch)

    with monkeypatch.context() as patch:
        patch.setattr(tiny_training.TinyTraining, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(recipe, tmp_path / "broken", tmp_path / "broken-model")
    train(recipe, tmp_path / "broken", tmp_path / "broken-model")
    whole = load_file(tmp_path / "whole-model" / "model.safetensors")
    resumed = load_file(tmp_path / "broken-model" / "model.safetensors")
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    with pytest.raises(InfopruneError, match="another recipe"):
        train(Recipe(batch_size=3), tmp_path / "broken", tmp_path / "broken-model")


def test_the_shipped_model_reads_handwriting_it_never_saw(tmp_path) -> None:
    assert (SHIPPED / "model.safetensors").stat().st_size <= 16 * 2**20
    write_handwriting(tmp_path / "test", "test", scenes=40, seed=77)
    vlm = load_dense_vlm(SHIPPED)
    result = evaluate(vlm.model, vlm.processor, read_handwriting(tmp_path / "test"), batch_size=160, progress=False)
    # 320 questions: three standard errors below the 93 % that the full benchmark must show.
    assert result["overall"] >= 88.7
