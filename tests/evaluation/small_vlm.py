"""A random Qwen2-VL and a random LLaVA of a few thousand parameters, with word-level processors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPImageProcessorPil,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
)

from infoprune_rt.evaluation.dataset import VQADataset, VQAExample
from infoprune_rt.processing import ImageTextProcessor

SPECIAL = ("<pad>", "<unk>", "<end>", "<say>", "<|image_pad|>", "<|vision_start|>", "<|vision_end|>", "<|video_pad|>")
SENTENCE = "what which color digit is the red green blue one two three yes no left right Is What ?"
WORDS = SENTENCE.split()
CHAT_TEMPLATE = (
    "{% for part in messages[0].content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %} {{ part.text }}{% endif %}"
    "{% endfor %} <say>"
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: i for i, word in enumerate((*SPECIAL, *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<end>",
        additional_special_tokens=list(SPECIAL[3:]),
    )


def build_processor() -> ImageTextProcessor:
    images = Qwen2VLImageProcessorPil(size={"shortest_edge": 28 * 28, "longest_edge": 84 * 84})
    return ImageTextProcessor(images, build_tokenizer(), chat_template=CHAT_TEMPLATE)


def build_llava_processor() -> LlavaProcessor:
    images = CLIPImageProcessorPil(
        size={"shortest_edge": 42}, crop_size={"height": 42, "width": 42}, do_center_crop=True
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=build_tokenizer(),
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token="<|image_pad|>",
        chat_template=CHAT_TEMPLATE,
    )


def _text(vocab_size: int) -> dict:
    return {
        "vocab_size": vocab_size,
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "bos_token_id": None,
        "eos_token_id": SPECIAL.index("<end>"),
        "pad_token_id": SPECIAL.index("<pad>"),
    }


def _finish(model):
    torch.manual_seed(5)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)  # large enough that answers depend on the image
    model.generation_config.eos_token_id = SPECIAL.index("<end>")
    model.generation_config.pad_token_id = SPECIAL.index("<pad>")
    return model.eval()


def build_model() -> Qwen2VLForConditionalGeneration:
    vocab_size = len(SPECIAL) + len(WORDS)
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 2, 2]}
    config = Qwen2VLConfig(
        vision_config={"depth": 2, "embed_dim": 32, "hidden_size": 24, "num_heads": 2},
        text_config=_text(vocab_size) | {"rope_parameters": rope},
        image_token_id=SPECIAL.index("<|image_pad|>"),
        video_token_id=SPECIAL.index("<|video_pad|>"),
        vision_start_token_id=SPECIAL.index("<|vision_start|>"),
        vision_end_token_id=SPECIAL.index("<|vision_end|>"),
        tie_word_embeddings=False,
    )
    return _finish(Qwen2VLForConditionalGeneration(config))


def build_llava() -> LlavaForConditionalGeneration:
    vocab_size = len(SPECIAL) + len(WORDS)
    vision = {
        "model_type": "clip_vision_model",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": 42,
        "patch_size": 14,
    }
    text = {"model_type": "llama"} | _text(vocab_size)
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=SPECIAL.index("<|image_pad|>"))
    return _finish(LlavaForConditionalGeneration(config))


def save_image(path: Path, height: int, width: int, rng: np.random.Generator) -> Path:
    Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
    return path


def build_dataset(folder: Path, rng: np.random.Generator) -> VQADataset:
    """9 questions of different lengths about 3 images of different sizes, the images in no order."""
    images = [
        save_image(folder / f"{i}.png", int(rng.integers(30, 90)), int(rng.integers(30, 90)), rng) for i in range(3)
    ]
    examples = []
    for i in range(9):
        image = int(rng.integers(3)) if i > 2 else 2 - i
        question = " ".join(rng.choice(WORDS[:12], size=int(rng.integers(1, 7)))) + " ?"
        answers = (str(rng.choice(["red", "two three", "yes"])),) * 10
        examples.append(VQAExample(f"q{i}", str(image), images[image], question, answers, "vqa"))
    return VQADataset(examples)
