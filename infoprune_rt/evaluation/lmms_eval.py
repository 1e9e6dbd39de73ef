"""A dense or compact model for lmms-eval's own tasks, prompts and scores. Imported by lmms-eval alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import torch
from accelerate import Accelerator
from lmms_eval.api.model import lmms
from PIL import Image

from infoprune_rt.errors import InfopruneError
from infoprune_rt.evaluation.weight_memory import require_weight_memory
from infoprune_rt.hardware import named_device
from infoprune_rt.hub import resolve_model_dir
from infoprune_rt.model_loading import load_any_vlm
from infoprune_rt.progress import progress_bars

DEFAULT_MAX_NEW_TOKENS = 128  # where a task names none


class InfopruneModel(lmms):  # type: ignore[misc]  # lmms-eval is not installed where types are checked
    """Qwen2-VL or LLaVA-1.5 through lmms-eval's chat interface: text and any number of pictures, no video, no audio.

    pretrained: a directory or hub id. device: as for ``infoprune`` (under accelerate's launcher each process has its
    own). batch_size: questions at a time.
    """

    is_simple = False  # takes messages, not a text with <image> in it

    def __init__(
        self,
        pretrained: str,
        device: str = "auto",
        batch_size: int | str = 1,
        max_batch_size: int | None = None,  # lmms-eval passes it to every model; it belongs to "auto"
    ) -> None:
        super().__init__()
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise InfopruneError(f"--batch_size must be a whole number of questions from 1 on, not {batch_size!r}")
        self.batch_size = int(batch_size)
        self.accelerator = Accelerator()
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        self.device = self.accelerator.device if self._world_size > 1 else named_device(str(device))
        require_weight_memory(resolve_model_dir(pretrained), self.device)
        vlm = load_any_vlm(pretrained, self.device)
        self._model, self._processor = vlm.model, vlm.processor

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """One answer for each request, up to the first of the task's stop strings; requests with equal generation
        settings share batches."""
        settings = [json.dumps(request.args[2], sort_keys=True, default=str) for request in requests]
        order = sorted(range(len(requests)), key=settings.__getitem__)
        answers = [""] * len(requests)
        with progress_bars(shown=self._rank == 0) as bar:
            task = bar.add_task("answering", total=len(requests))
            for _, group in groupby(order, key=settings.__getitem__):
                alike = list(group)
                for start in range(0, len(alike), self.batch_size):
                    batch = alike[start : start + self.batch_size]
                    said = self._generate([requests[i] for i in batch], requests[batch[0]].args[2])
                    for i, text in zip(batch, said, strict=True):
                        answers[i] = text
                    bar.advance(task, len(batch))
        return answers

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Refused: answers are generated here, not weighed."""
        raise InfopruneError("infoprune answers lmms-eval's generate_until tasks only; this one asks for loglikelihood")

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Refused: one question, one answer."""
        raise InfopruneError(
            "infoprune answers lmms-eval's generate_until tasks only; this one asks for several rounds"
        )

    @torch.inference_mode()
    def _generate(self, requests: Sequence[Any], wanted: Mapping[str, Any]) -> list[str]:
        prompts, images = [], []
        for request in requests:
            prompt, pictures = self._prompt(request)
            prompts.append(prompt)
            images += pictures
        inputs = self._processor(
            text=prompts, images=images or None, padding=True, padding_side="left", return_tensors="pt"
        ).to(self.device)
        generated = self._model.generate(**inputs, **_generation(wanted))
        new = generated[:, inputs["input_ids"].shape[1] :]
        texts = self._processor.tokenizer.batch_decode(new, skip_special_tokens=True)
        return [_until(text, wanted.get("until") or []) for text in texts]

    def _prompt(self, request: Any) -> tuple[str, list[Image.Image]]:
        """The prompt up to where the answer begins, and the pictures in it."""
        _, doc_to_messages, _, doc_id, task, split = request.args
        images: list[Image.Image] = []
        messages: list[dict[str, Any]] = []
        for message in doc_to_messages(self.task_dict[task][split][doc_id]):
            parts = []
            for part in message["content"]:
                if part["type"] == "image" and isinstance(part["url"], Image.Image):
                    images.append(part["url"].convert("RGB"))
                    parts.append({"type": "image"})
                elif part["type"] == "text":
                    parts.append({"type": "text", "text": part["text"]})
                else:
                    raise InfopruneError(
                        f"task {task}, document {doc_id}: infoprune takes text and pictures, not {part['type']} given "
                        f"as {type(part.get('url')).__name__}; choose a task about pictures"
                    )
            messages.append({"role": message["role"], "content": parts})
        return self._processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False), images


def _generation(wanted: Mapping[str, Any]) -> dict[str, Any]:
    """A task's settings as ``generate`` takes them: greedy unless a temperature is wanted, as in lmms-eval's models."""
    temperature = float(wanted.get("temperature") or 0)
    sampled = temperature > 0 and bool(wanted.get("do_sample", True))
    return {
        "max_new_tokens": int(wanted.get("max_new_tokens") or DEFAULT_MAX_NEW_TOKENS),
        "num_beams": int(wanted.get("num_beams") or 1),
        "do_sample": sampled,
        "temperature": temperature if sampled else None,
        "top_p": wanted.get("top_p") if sampled else None,
        "top_k": None,
    }


def _until(text: str, stops: str | Sequence[str]) -> str:
    """The text up to the first stop string."""
    for stop in [stops] if isinstance(stops, str) else stops:
        text = text.split(stop)[0] if stop else text
    return text.strip()
