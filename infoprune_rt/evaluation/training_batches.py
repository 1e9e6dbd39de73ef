"""Questions with their answers as training batches for any HF VLM."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers.processing_utils import ProcessorMixin

from infoprune_rt.errors import EmptyBatchError, InfopruneError
from infoprune_rt.evaluation.dataset import VQADataset
from infoprune_rt.evaluation.encoding import encode_prompts
from infoprune_rt.evaluation.images import ImageSource, OnCorrupt
from infoprune_rt.evaluation.prompt import prompt_for
from infoprune_rt.pruning.task_loss import IGNORED_LABEL


class VQABatches:
    """An indexable data set and its collate function: the most frequent answer is what is to be said."""

    def __init__(self, dataset: VQADataset, processor: ProcessorMixin, on_corrupt: OnCorrupt = "refuse") -> None:
        if processor.tokenizer.eos_token_id is None:
            raise InfopruneError("the tokenizer names no end-of-sequence token, so no answer could end; set eos_token")
        self.dataset, self.processor, self.source = dataset, processor, ImageSource(on_corrupt)

    @property
    def digest(self) -> str:
        """SHA-256 over questions, answers and image names."""
        found = hashlib.sha256()
        for example in self.dataset:
            fields = (example.question_id, example.image_path.name, example.question, example.majority_answer)
            found.update(json.dumps(fields).encode())
        return found.hexdigest()

    def __len__(self) -> int:
        return len(self.dataset)

    def collate(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Model inputs of these examples, one image each, padded on the left so that answers end together.

        ``input_ids``, ``attention_mask``, ``labels`` (B x N, int64; -100 on padding and prompt, then answer and
        end of sequence), ``mm_token_type_ids`` where the model takes them, and the image processor's output.
        The prompt's tokens are exactly those seen when answering. Examples whose image is corrupt are left out
        (``source.skipped`` names them) or refused, as ``on_corrupt`` says.
        """
        read = [(self.dataset[i], self.source.read(self.dataset[i].image_path)) for i in indices]
        examples = [example for example, image in read if image is not None]
        images = [image for _, image in read if image is not None]
        if not images:
            raise EmptyBatchError(f"every image of a batch is corrupt, first {read[0][0].image_path}; check the images")
        prompts = [prompt_for(self.processor, example) for example in examples]
        encoded = encode_prompts(self.processor, prompts, images, range(len(images)))
        answers = [self._answer_ids(example.majority_answer) for example in examples]
        mask = encoded.tokens["attention_mask"].bool()
        pad_id = self.processor.tokenizer.pad_token_id
        fill = {"input_ids": (pad_id, None), "attention_mask": (0, 1)}
        inputs = {}
        for name, rows in encoded.tokens.items():
            pad, constant = fill.get(name, (0, 0))
            tails = [ids if constant is None else [constant] * len(ids) for ids in answers]
            inputs[name] = _append(rows, mask, tails, pad)
        inputs["labels"] = _append(
            torch.full_like(encoded.tokens["input_ids"], IGNORED_LABEL), mask, answers, IGNORED_LABEL
        )
        return inputs | encoded.images

    def _answer_ids(self, answer: str) -> list[int]:
        tokenizer = self.processor.tokenizer
        ids: list[int] = tokenizer(answer, add_special_tokens=False)["input_ids"]
        return [*ids, tokenizer.eos_token_id]


def _append(rows: Tensor, mask: Tensor, tails: Sequence[Sequence[int]], pad: int) -> Tensor:
    """Each row's unmasked part with its tail behind it, padded on the left: B x longest."""
    joined = [row[keep].tolist() + list(tail) for row, keep, tail in zip(rows, mask, tails, strict=True)]
    longest = max(map(len, joined))
    return torch.tensor([[pad] * (longest - len(row)) + row for row in joined], dtype=rows.dtype)
