"""Images: broken, huge, thin or missing ones are named; batches walk again and hold one batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin
from small_vlm import build_model, build_processor, save_image

from infoprune_rt.errors import InfopruneError
from infoprune_rt.evaluation import images
from infoprune_rt.evaluation.images import ImageSource, read_image, tower_batches
from infoprune_rt.towers.qwen2_vl import Qwen2VLAdapter


@pytest.fixture
def rng():
    return np.random.default_rng()


def _png_claiming(path, width, height):
    """A PNG of one pixel whose header claims another size."""
    Image.new("RGB", (1, 1)).save(path)
    data = bytearray(path.read_bytes())
    data[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    data[29:33] = PngImagePlugin._crc32(bytes(data[12:29])).to_bytes(4, "big")
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "I;16"])
def test_every_kind_of_image_becomes_rgb(tmp_path, mode):
    path = tmp_path / ("x.tif" if mode == "CMYK" else "x.png")
    Image.new(mode, (5, 3)).save(path)
    image = read_image(path)
    assert (image.mode, image.size) == ("RGB", (5, 3))


def test_pixels_are_those_of_the_file(tmp_path, rng):
    path = save_image(tmp_path / "x.png", 7, 11, rng)
    assert np.array_equal(np.asarray(read_image(path)), np.asarray(Image.open(path)))


@pytest.mark.parametrize("limit_of_pil", [Image.MAX_IMAGE_PIXELS, None])
def test_a_bomb_is_refused_before_decoding(tmp_path, monkeypatch, limit_of_pil):
    path = _png_claiming(tmp_path / "bomb.png", 14_000, 14_000)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit_of_pil)
    monkeypatch.setattr(Image.Image, "convert", lambda *_: pytest.fail("the image was decoded"))
    with pytest.raises(InfopruneError, match=r"bomb\.png has more than 178956970 pixels"):
        read_image(path)


def test_a_thin_image_is_refused(tmp_path):
    path = tmp_path / "thin.png"
    Image.new("RGB", (201, 1)).save(path)
    with pytest.raises(InfopruneError, match=r"thin\.png \(201 x 1\)"):
        read_image(path)


@pytest.mark.parametrize("damage", ["empty", "torn", "text", "missing", "folder"])
def test_unreadable_files_are_named(tmp_path, rng, damage):
    path = tmp_path / "broken.jpg"
    save_image(path, 40, 40, rng)
    content = path.read_bytes()
    path.unlink()
    if damage == "folder":
        path.mkdir()
    elif damage != "missing":
        path.write_bytes({"empty": b"", "torn": content[: len(content) // 2], "text": b"<html>404</html>"}[damage])
    with pytest.raises(InfopruneError, match=r"broken\.jpg"):
        read_image(path)


def test_source_skips_and_counts_each_image_once(tmp_path, rng):
    good, bad = save_image(tmp_path / "good.png", 9, 9, rng), tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    source = ImageSource("skip")
    assert len(list(source.read_all([good, bad, good, bad]))) == 2
    assert list(source.skipped) == [bad]
    assert "bad.png" in source.skipped[bad]
    with pytest.raises(InfopruneError, match=r"bad\.png"):
        list(ImageSource("refuse").read_all([good, bad]))
    with pytest.raises(InfopruneError, match="ignore"):
        ImageSource("ignore")


def test_tower_batches_are_what_the_tower_takes(tmp_path, rng):
    paths = [save_image(tmp_path / f"{i}.png", 30 + 9 * i, 61 - 7 * i, rng) for i in range(5)]
    processor, tower = build_processor().image_processor, build_model().model.visual
    batches = tower_batches(paths, processor, Qwen2VLAdapter(), 2)
    walks = [list(batches), list(batches)]
    assert [len(batch["grid_thw"]) for batch in walks[0]] == [2, 2, 1]
    for first, second in zip(*walks, strict=True):
        assert all(torch.equal(first[name], second[name]) for name in first)
    whole = processor([read_image(path) for path in paths], return_tensors="pt")
    assert torch.equal(torch.cat([batch["hidden_states"] for batch in walks[0]]), whole["pixel_values"])
    with torch.no_grad():
        assert tower(**walks[0][0]).pooler_output.shape == (int(walks[0][0]["grid_thw"].prod(-1).sum()) // 4, 24)


def test_tower_batches_hold_one_batch_of_images(tmp_path, rng, monkeypatch):
    paths = [save_image(tmp_path / f"{i}.png", 30, 30, rng) for i in range(7)]
    read = []
    monkeypatch.setattr(images, "read_image", lambda path: read.append(path) or read_image(path))
    walk = iter(tower_batches(paths, build_processor().image_processor, Qwen2VLAdapter(), 3))
    next(walk)
    assert read == paths[:3]


def test_tower_batches_skip_corrupt_images_and_stay_full(tmp_path, rng):
    paths = [save_image(tmp_path / f"{i}.png", 30, 30, rng) for i in range(5)]
    paths[1].write_bytes(b"")
    arguments = (build_processor().image_processor, Qwen2VLAdapter(), 2)
    batches = tower_batches(paths, *arguments, on_corrupt="skip")
    assert [len(batch["grid_thw"]) for batch in batches] == [2, 2]
    assert list(batches.source.skipped) == [paths[1]]
    with pytest.raises(InfopruneError, match=r"1\.png"):
        list(tower_batches(paths, *arguments))
    with pytest.raises(InfopruneError, match="none of the 1 calibration images"):
        list(tower_batches(paths[1:2], *arguments, on_corrupt="skip"))
    with pytest.raises(InfopruneError, match="no calibration images"):
        tower_batches([], *arguments)
    with pytest.raises(InfopruneError, match="at least 1"):
        tower_batches(paths, *arguments[:2], 0)
