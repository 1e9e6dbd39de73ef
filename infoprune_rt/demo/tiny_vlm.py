"""The tiny VLM: transformers' own Qwen2-VL class with a small config and a word-level tokenizer."""

from __future__ import annotations

from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2VLConfig, Qwen2VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from infoprune_rt.demo.scenes import COLORS, SIZE
from infoprune_rt.evaluation.prompt import ANSWER_INSTRUCTION
from infoprune_rt.processing import ImageTextProcessor

SHIPPED = Path(__file__).parent / "assets" / "tiny-vlm"

PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
VISION_START, VISION_END, IMAGE, VIDEO = "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"
SPECIAL = (PAD, START, END, VISION_START, VISION_END, IMAGE, VIDEO)
_QUESTION_WORDS = (
    "what digit is color the how many colored digits are there a number written on sign first last of to "
    "left right above below same as leftmost rightmost topmost bottommost yes no"
)
UNKNOWN = "<unk>"

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}" + START + "{% endif %}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}" + VISION_START + IMAGE + VISION_END + "{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{% if message['role'] == 'assistant' %}" + END + "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}" + START + "{% endif %}"
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word; numbers digit by digit behind a lone word mark, so that any number decodes whole.

    The answer instruction that every evaluation prompt ends with is one token, which keeps prompts short.
    """
    words = [f"▁{word}" for word in (*_QUESTION_WORDS.split(), *COLORS)]
    entries = [UNKNOWN, "▁", "?", *"0123456789", *words]
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(entries)}, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always"),
            pre_tokenizers.Split("?", "isolated"),
            pre_tokenizers.Digits(individual_digits=True),
        ]
    )
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer.add_tokens([AddedToken(ANSWER_INSTRUCTION, lstrip=True, normalized=False)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=UNKNOWN,
        pad_token=PAD,
        eos_token=END,
        padding_side="left",
        extra_special_tokens={"image_token": IMAGE, "video_token": VIDEO},
    )


def build_processor() -> ImageTextProcessor:
    """Tokenizer and image processor as one; every picture is taken at the scenes' own size."""
    edge = {"shortest_edge": SIZE * SIZE, "longest_edge": SIZE * SIZE}
    return ImageTextProcessor(
        image_processor=Qwen2VLImageProcessorPil(size=edge),
        tokenizer=build_tokenizer(),
        chat_template=CHAT_TEMPLATE,
    )


def build_config(tokenizer: PreTrainedTokenizerFast) -> Qwen2VLConfig:
    """8 vision blocks of 6 heads of 32 (d = 192, FFN 768), 2 text layers: 5.4 M parameters."""
    width = 192
    ids = tokenizer.convert_tokens_to_ids
    return Qwen2VLConfig(
        vision_config={"depth": 8, "embed_dim": width, "hidden_size": width, "num_heads": 6, "initializer_range": 0.04},
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": width,
            "intermediate_size": 512,
            "num_hidden_layers": 2,
            "num_attention_heads": 6,
            "num_key_value_heads": 6,
            "max_position_embeddings": 512,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]},
            "initializer_range": 0.04,
            "bos_token_id": None,
            "eos_token_id": ids(END),
            "pad_token_id": ids(PAD),
        },
        image_token_id=ids(IMAGE),
        video_token_id=ids(VIDEO),
        vision_start_token_id=ids(VISION_START),
        vision_end_token_id=ids(VISION_END),
        tie_word_embeddings=True,
        initializer_range=0.04,
    )


def build_model(config: Qwen2VLConfig) -> Qwen2VLForConditionalGeneration:
    """The untrained model in float32; its weights come from torch's global generator."""
    model = Qwen2VLForConditionalGeneration(config)
    model.generation_config.eos_token_id = config.text_config.eos_token_id
    model.generation_config.pad_token_id = config.text_config.pad_token_id
    return model
