"""Where the official data sets are, and what their files are called there."""

from __future__ import annotations

WHERE_QUESTIONS = (
    "VQAv2: v2_OpenEnded_mscoco_val2014_questions.json and v2_mscoco_val2014_annotations.json from "
    "https://visualqa.org/download.html; TextVQA: TextVQA_0.5.1_val.json from https://textvqa.org/dataset; "
    "GQA: testdev_balanced_questions.json from https://cs.stanford.edu/people/dorarad/gqa/download.html"
)
WHERE_IMAGES = (
    "VQAv2: COCO's val2014.zip from https://cocodataset.org; TextVQA: train_val_images.zip; GQA: images.zip, "
    "both from the pages of their questions"
)
