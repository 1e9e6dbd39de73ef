"""The processor without torchvision: its files are a Qwen2-VL processor's, and they come back the same."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    CLIPImageProcessorPil,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2VLImageProcessorPil,
)

from infoprune_rt.errors import InfopruneError
from infoprune_rt.processing import ImageTextProcessor, load_processor

TEMPLATE = "<|vision_start|><|image_pad|><|vision_end|> {{ messages[0].content[1].text }}"
SPECIAL = ["<pad>", "<unk>", "<end>", "<|image_pad|>", "<|vision_start|>", "<|vision_end|>"]


def _tokenizer(special: list[str]) -> PreTrainedTokenizerFast:
    words = [*special, "what", "color", "is", "it", "?"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<end>",
        additional_special_tokens=special[3:],
    )


@pytest.fixture
def processor():
    images = Qwen2VLImageProcessorPil(size={"shortest_edge": 2000, "longest_edge": 9000}, image_mean=[0.1, 0.2, 0.3])
    return ImageTextProcessor(images, _tokenizer(SPECIAL), chat_template=TEMPLATE)


@pytest.fixture
def directory(processor, tmp_path):
    processor.save_pretrained(tmp_path / "model")
    _config(tmp_path / "model", {"model_type": "qwen2_vl"})
    return tmp_path / "model"


def _config(directory, config):
    (directory / "config.json").write_text(json.dumps(config))


def _images(*sizes):
    rng = np.random.default_rng()
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]


def _prompt(processor, text):
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]
    return processor.apply_chat_template(messages, tokenize=False)


def _inputs(processor, images):
    prompts = [_prompt(processor, "what ?"), _prompt(processor, "what color is it ?")]
    return processor(images=images, text=prompts, padding=True, return_tensors="pt")


def test_image_tokens_are_as_many_as_merged_patches(processor):
    inputs = _inputs(processor, _images((41, 97), (80, 33)))
    for ids, kinds, grid in zip(
        inputs["input_ids"], inputs["mm_token_type_ids"], inputs["image_grid_thw"], strict=True
    ):
        assert torch.equal(kinds == 1, ids == processor.image_token_id)
        assert int((kinds == 1).sum()) == int(grid.prod()) // 4
    assert len(inputs["pixel_values"]) == int(inputs["image_grid_thw"].prod(-1).sum())
    assert inputs["pixel_values"].shape[1] == 3 * 2 * 14 * 14


def test_saved_and_loaded_gives_the_same_inputs(processor, directory):
    images = _images((41, 97), (80, 33))
    expected, loaded = _inputs(processor, images), _inputs(load_processor(directory), images)
    assert set(loaded) == set(expected)
    assert all(torch.equal(loaded[name], expected[name]) for name in expected)


def test_a_compact_checkpoints_directory_is_read_without_a_warning(directory, capfd):
    _config(directory, {"model_type": "infoprune_vlm", "vlm_config": {"model_type": "qwen2_vl"}})
    assert isinstance(load_processor(directory), ImageTextProcessor)
    assert capfd.readouterr().err == ""


def test_older_template_file_is_read(processor, directory):
    (directory / "chat_template.jinja").unlink()
    (directory / "chat_template.json").write_text(json.dumps({"chat_template": "{{ 'old' }}"}))
    assert _prompt(load_processor(directory), "") == "old"
    (directory / "chat_template.json").unlink()
    assert load_processor(directory).chat_template is None


def test_directory_is_a_stock_qwen2_vl_processors(directory):
    """Every class it names is transformers' own, so it opens wherever torchvision is installed."""
    settings = json.loads((directory / "preprocessor_config.json").read_text())
    assert settings["processor_class"] == "Qwen2VLProcessor"
    assert settings["image_processor_type"] == "Qwen2VLImageProcessor"
    assert settings["size"] == {"shortest_edge": 2000, "longest_edge": 9000}
    assert not (directory / "processor_config.json").exists()
    assert "infoprune" not in "".join(path.read_text() for path in directory.iterdir()).lower()


def test_stock_auto_classes_read_the_parts(directory):
    """``AutoProcessor`` needs torchvision; the two halves it would join open here."""
    images, tokenizer = AutoImageProcessor.from_pretrained(directory), AutoTokenizer.from_pretrained(directory)
    assert type(images).__module__.startswith("transformers.models.qwen2_vl.")
    assert images.size["longest_edge"] == 9000
    assert tokenizer("what color")["input_ids"] == _tokenizer(SPECIAL)("what color")["input_ids"]


@pytest.fixture
def llava(tmp_path):
    images = CLIPImageProcessorPil(size={"shortest_edge": 42}, crop_size={"height": 42, "width": 42})
    tokenizer = _tokenizer([*SPECIAL[:3], "<image>"])
    processor = LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template="<image> {{ messages[0].content[1].text }}",
    )
    directory = tmp_path / "llava"
    processor.save_pretrained(directory)
    _config(directory, {"model_type": "llava", "vision_config": {"patch_size": 14}})
    return processor, directory


@pytest.mark.parametrize("layout", ["new", "old"])
def test_llava(llava, layout):
    """old: checkpoints of before processor_config.json leave the patch size to the model's config."""
    processor, directory = llava
    if layout == "old":
        settings = json.loads((directory / "processor_config.json").read_text())
        (directory / "preprocessor_config.json").write_text(json.dumps(settings["image_processor"]))
        (directory / "processor_config.json").unlink()
    images = _images((60, 42), (43, 90))
    expected, loaded = _inputs(processor, images), _inputs(load_processor(directory), images)
    assert all(torch.equal(loaded[name], expected[name]) for name in expected)
    assert (loaded["input_ids"] == loaded["input_ids"][0, 0]).sum() >= 2 * 9  # 3 x 3 patches an image


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / "config.json").unlink(), "has no config.json"),
        (lambda d: (d / "config.json").write_text("{"), "config.json is not readable JSON"),
        (lambda d: _config(d, {"model_type": "gpt2"}), "'gpt2' model; processors are supported for qwen2_vl and llava"),
        (lambda d: (d / "preprocessor_config.json").unlink(), r"lacks its image processor's files"),
        (lambda d: (d / "preprocessor_config.json").write_text("[1"), "can't be read"),
        (lambda d: [(d / n).unlink() for n in ("tokenizer.json", "tokenizer_config.json")], "lacks its tokenizer's"),
        (lambda d: (d / "tokenizer.json").write_text("{}"), "can't be read"),
    ],
)
def test_what_is_wanting_is_told_in_one_line(directory, damage, message):
    damage(directory)
    with pytest.raises(InfopruneError, match=message) as told:
        load_processor(directory)
    assert str(directory) in str(told.value)
    assert "\n" not in str(told.value)


def test_no_such_directory(tmp_path):
    with pytest.raises(InfopruneError, match="no directory"):
        load_processor(tmp_path / "gone")


def test_a_tokenizer_without_image_token_is_refused(directory, processor):
    with pytest.raises(InfopruneError, match=r"<\|image_pad\|>"):
        ImageTextProcessor(processor.image_processor, _tokenizer(SPECIAL[:3]))
    _tokenizer(SPECIAL[:3]).save_pretrained(directory)
    with pytest.raises(InfopruneError, match=r"model: the tokenizer has no '<\|image_pad\|>'"):
        load_processor(directory)
