"""The lmms-eval plug-in: found, constructed and asked as lmms-eval does it, on the shipped tiny VLM."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch
from lmms_eval_interface import Instance, interface
from PIL import Image

from infoprune_rt.compression import compress_checkpoint, make_plan
from infoprune_rt.demo.handwriting import read_handwriting, write_handwriting
from infoprune_rt.demo.tiny_vlm import SHIPPED
from infoprune_rt.errors import InfopruneError
from infoprune_rt.evaluation.answering import answer
from infoprune_rt.evaluation.dataset import VQADataset, VQAExample
from infoprune_rt.evaluation.prompt import ANSWER_INSTRUCTION
from infoprune_rt.model_loading import describe_source, load_any_vlm

TASK, SPLIT = "handwriting", "val"
GREEDY = {"max_new_tokens": 16, "temperature": 0, "do_sample": False}


@pytest.fixture(scope="module")
def model_class() -> Iterator[Any]:
    """The class as lmms-eval's registry comes to it: from the installed package's entry point."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    ((name, value),) = project["entry-points"]["lmms_eval.models"].items()
    with interface():
        manifest = EntryPoint(name, value, "lmms_eval.models").load()()
        assert (manifest.model_id, manifest.simple_class_path, manifest.aliases) == ("infoprune", None, ())
        module, _, class_name = manifest.chat_class_path.rpartition(".")
        __import__(module)
        yield getattr(sys.modules[module], class_name)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> VQADataset:
    """16 questions of all families about two scenes."""
    folder = tmp_path_factory.mktemp("handwriting") / "scenes"
    write_handwriting(folder, "test", scenes=6, seed=5)
    return read_handwriting(folder)[:16]


@pytest.fixture(scope="module")
def compact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny VLM compact, with nothing removed: it answers as before."""
    out = tmp_path_factory.mktemp("models") / "compact"
    source = describe_source(SHIPPED)
    compress_checkpoint(SHIPPED, out, make_plan(source.architecture, source.shape), lambda: [])
    return out


def to_messages(example: VQAExample) -> list[dict[str, Any]]:
    """As lmms-eval's tasks make them of a picture and a text."""
    question = example.question.capitalize() if example.family == "text" else example.question
    picture = {"type": "image", "url": Image.open(example.image_path)}
    return [{"role": "user", "content": [picture, {"type": "text", "text": f"{question}\n{ANSWER_INSTRUCTION}"}]}]


def requests_for(model: Any, documents: Any, settings: list[dict[str, Any]], to_messages: Any = to_messages) -> list:
    model.task_dict[TASK] = {SPLIT: documents}
    return [Instance(("", to_messages, chosen, i, TASK, SPLIT)) for i, chosen in enumerate(settings)]


def test_it_is_what_the_registry_asks_for(model_class: Any) -> None:
    from lmms_eval.api.model import lmms

    assert issubclass(model_class, lmms)
    assert not model_class.__abstractmethods__
    assert model_class.is_simple is False, "else the registry refuses it as a chat model"


def test_it_answers_as_evaluate_does(model_class: Any, compact: Path, dataset: VQADataset) -> None:
    """Made from lmms-eval's argument string; batches and request order do not show in the answers."""
    vlm = load_any_vlm(SHIPPED)
    expected = [given.text for given in answer(vlm.model, vlm.processor, dataset, 1, progress=False)]
    for place, batch_size in ((SHIPPED, "1"), (compact, "5")):
        extra = {"batch_size": batch_size, "max_batch_size": None, "device": "cpu"}
        model = model_class.create_from_arg_string(f"pretrained={place}", extra)
        assert (model.rank, model.world_size, model.device) == (0, 1, torch.device("cpu"))
        said = model.generate_until(requests_for(model, dataset, [dict(GREEDY)] * len(dataset)))
        assert said == expected
    assert len(set(expected)) > 4, "a model that says always the same would pass"


def test_every_request_has_its_own_settings(model_class: Any, dataset: VQADataset) -> None:
    model = model_class(str(SHIPPED), device="cpu", batch_size=4)
    whole = model.generate_until(requests_for(model, dataset, [{}] * len(dataset)))
    stop = max(whole, key=len)[1]
    kinds = [{"until": [stop, "\n\n"]}, {"until": stop}, {"max_new_tokens": 1}, {"temperature": 0.0}, {"num_beams": 1}]
    settings = [kinds[i % len(kinds)] for i in range(len(dataset))]
    said = model.generate_until(requests_for(model, dataset, settings))
    for text, full, chosen in zip(said, whole, settings, strict=True):
        if "until" in chosen:
            assert text == full.split(stop)[0].strip()
        elif "max_new_tokens" in chosen:
            tokens = model._processor.tokenizer(full, add_special_tokens=False)["input_ids"]
            assert text == model._processor.tokenizer.decode(tokens[:1]).strip()
        else:
            assert text == full
    assert said != whole


def test_a_temperature_draws(model_class: Any, dataset: VQADataset) -> None:
    model = model_class(str(SHIPPED), device="cpu", batch_size=8)
    hot = requests_for(model, dataset, [{"temperature": 50.0, "do_sample": True, "max_new_tokens": 4}] * len(dataset))
    assert model.generate_until(hot) != model.generate_until(hot)


def test_several_pictures_or_none(model_class: Any, dataset: VQADataset) -> None:
    """0, 1 and 2 in one batch: each question is answered as alone."""
    model = model_class(str(SHIPPED), device="cpu", batch_size=3)
    model._model.float()  # what it was not trained for it answers without conviction: rounding must not decide

    def messages(example: VQAExample) -> list[dict[str, Any]]:
        picture, text = to_messages(example)[0]["content"]
        return [{"role": "user", "content": [picture] * (int(example.question_id) % 3) + [text]}]

    together = model.generate_until(requests_for(model, dataset, [GREEDY] * 6, messages))
    model.batch_size = 1
    assert together == model.generate_until(requests_for(model, dataset, [GREEDY] * 6, messages))


def test_what_it_cannot_do_is_told(model_class: Any, dataset: VQADataset, tmp_path: Path) -> None:
    model = model_class(str(SHIPPED), device="cpu")
    for part, saying in (
        ({"type": "video", "url": "clip.mp4"}, "not video given as str"),
        ({"type": "image", "url": "picture.png"}, "not image given as str"),
    ):
        asked = requests_for(model, dataset, [{}], lambda _, part=part: [{"role": "user", "content": [part]}])
        with pytest.raises(InfopruneError, match=f"task handwriting, document 0: .*{saying}"):
            model.generate_until(asked)
    for method in (model.loglikelihood, model.generate_until_multi_round):
        with pytest.raises(InfopruneError, match="generate_until tasks only"):
            method([])
    for batch_size in ("auto", 0):
        with pytest.raises(InfopruneError, match="--batch_size"):
            model_class(str(SHIPPED), batch_size=batch_size)
    with pytest.raises(InfopruneError, match="no such model"):
        model_class(str(tmp_path / "absent"), device="cpu")


def test_nothing_else_needs_lmms_eval() -> None:
    """The command line and the manifest's module import without it."""
    code = (
        "import sys; sys.modules['lmms_eval'] = None; import infoprune_rt.cli, infoprune_rt.evaluation.run, "
        "infoprune_rt.evaluation.lmms_eval_plugin; assert 'infoprune_rt.evaluation.lmms_eval' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
