"""Handwriting VQA on disk: pictures and questions in the official files of VQAv2, TextVQA and GQA."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from infoprune_rt.demo.scenes import Split, ask, draw_scene
from infoprune_rt.evaluation.dataset import FAMILIES, VQADataset, VQAExample
from infoprune_rt.evaluation.format_writers import write_gqa, write_textvqa, write_vqav2
from infoprune_rt.evaluation.formats import read_dataset
from infoprune_rt.files import new_directory

SUBTYPE = "handwriting"


def write_handwriting(directory: Path, split: Split, scenes: int, seed: int) -> None:
    """Draw ``scenes`` scenes with 8 questions each into a new directory.

    The ten "human" answers of VQAv2 and TextVQA are ten copies of the one right answer: a scene
    is drawn from its own description, so nobody had to be asked.
    """
    rng = np.random.default_rng((seed, 0x5CE2E))
    examples: list[VQAExample] = []
    with new_directory(directory) as aside:
        (aside / "images").mkdir()
        for image in range(1, scenes + 1):
            name = f"COCO_{SUBTYPE}_{image:012d}"
            picture, scene = draw_scene(rng, split)
            path = aside / "images" / f"{name}.png"
            Image.fromarray(picture).save(path)
            for number, question in enumerate(ask(rng, scene)):
                plain_id = question.family == "vqa"
                examples.append(
                    VQAExample(
                        question_id=str(image * 100 + number),
                        image_id=str(image) if plain_id else name,
                        image_path=path,
                        question=question.text,
                        answers=(question.answer,) * (1 if question.family == "relations" else 10),
                        family=question.family,
                        question_type=question.kind,
                    )
                )
        vqa, text, relations = ([e for e in examples if e.family == family] for family in FAMILIES)
        files = _files(aside)
        write_vqav2(vqa, files["questions"], files["annotations"], SUBTYPE)
        write_textvqa(text, files["text"], split)
        write_gqa(relations, files["relations"])


def read_handwriting(directory: Path) -> VQADataset:
    """All three families of a directory that ``write_handwriting`` made, scene by scene."""
    files, images = _files(directory), directory / "images"
    joined = (
        read_dataset(files["questions"], images, files["annotations"])
        + read_dataset(files["text"], images)
        + read_dataset(files["relations"], images)
    )
    return VQADataset(sorted(joined, key=lambda example: int(example.question_id)))


def _files(directory: Path) -> dict[str, Path]:
    return {
        "questions": directory / f"v2_OpenEnded_{SUBTYPE}_questions.json",
        "annotations": directory / f"v2_{SUBTYPE}_annotations.json",
        "text": directory / f"TextVQA_{SUBTYPE}.json",
        "relations": directory / f"gqa_{SUBTYPE}_questions.json",
    }
