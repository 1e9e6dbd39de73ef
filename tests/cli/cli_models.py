"""Small random models on disk, and the arguments that name handwriting scenes."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import (
    CLIPImageProcessorPil,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedModel,
    Qwen2VLConfig,
)

from infoprune_rt.demo.tiny_vlm import CHAT_TEMPLATE, IMAGE, build_config, build_model, build_processor, build_tokenizer

MODELS = ("qwen", "llava")
BLOCKS, HEADS, WIDTH, FFN_WIDTH = 3, 4, 64, 256


def _qwen() -> PreTrainedModel:
    values = build_config(build_tokenizer()).to_dict()
    values["vision_config"] |= {
        "depth": BLOCKS,
        "embed_dim": WIDTH,
        "num_heads": HEADS,
        "mlp_ratio": FFN_WIDTH // WIDTH,
    }
    values["tie_word_embeddings"] = False  # a tied random model repeats the token before, whatever it sees
    return build_model(Qwen2VLConfig(**values))


def _llava() -> PreTrainedModel:
    tokenizer = build_tokenizer()
    text = build_config(tokenizer).text_config
    shared = ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
    ids = {name: getattr(text, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    vision = {
        "model_type": "clip_vision_model",
        "num_hidden_layers": BLOCKS,
        "num_attention_heads": HEADS,
        "hidden_size": WIDTH,
        "intermediate_size": FFN_WIDTH,
        "image_size": 42,
        "patch_size": 14,
    }
    llama = {"model_type": "llama", "num_hidden_layers": 1, **{name: getattr(text, name) for name in shared}, **ids}
    image = tokenizer.convert_tokens_to_ids(IMAGE)
    ends = {"image_token_index": image, "vision_feature_layer": -1}  # the last block is used, as in Qwen2-VL
    model = LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=llama, **ends))
    model.generation_config.update(**ids)
    return model


def _llava_processor() -> LlavaProcessor:
    pictures = CLIPImageProcessorPil(size={"shortest_edge": 42}, crop_size={"height": 42, "width": 42})
    return LlavaProcessor(
        image_processor=pictures,
        tokenizer=build_tokenizer(),
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token=IMAGE,
        chat_template=CHAT_TEMPLATE,
    )


def save_model(name: str, folder: Path) -> None:
    """A dense checkpoint with its processor."""
    torch.manual_seed(3)
    model = _qwen() if name == "qwen" else _llava()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)  # large enough that answers depend on the picture
    model.save_pretrained(folder)
    (build_processor() if name == "qwen" else _llava_processor()).save_pretrained(folder)


def questions_of(folder: Path) -> tuple[str, ...]:
    """The options that name the questions of all three families in a folder of handwriting scenes."""
    asked, truth, text, relations = (
        str(folder / name)
        for name in (
            "v2_OpenEnded_handwriting_questions.json",
            "v2_handwriting_annotations.json",
            "TextVQA_handwriting.json",
            "gqa_handwriting_questions.json",
        )
    )
    images = str(folder / "images")
    return ("--data", asked, "--annotations", truth, "--data", text, "--data", relations, "--images", images)
