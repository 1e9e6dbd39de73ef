"""The wording of an evaluation prompt (method.md section 7)."""

from __future__ import annotations

from typing import Any

from transformers.processing_utils import ProcessorMixin

from infoprune_rt.errors import InfopruneError
from infoprune_rt.evaluation.dataset import VQAExample

ANSWER_INSTRUCTION = "Answer the question using a single word or phrase."


def messages_for(question: str) -> list[dict[str, Any]]:
    """One user turn: the image, then the question and the instruction for a short answer."""
    text = f"{question}\n{ANSWER_INSTRUCTION}"
    return [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]


def prompt_for(processor: ProcessorMixin, example: VQAExample) -> str:
    """The prompt up to where the answer begins; one image token stands for the whole image.

    TextVQA's questions are put with a capital first letter and the rest small, as published scores do.
    """
    if processor.chat_template is None:
        raise InfopruneError("the processor has no chat template; add a chat_template.jinja to the model's directory")
    question = example.question.capitalize() if example.family == "text" else example.question
    return str(processor.apply_chat_template(messages_for(question), add_generation_prompt=True, tokenize=False))
