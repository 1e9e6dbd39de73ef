from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from sample_report import sample_report

from infoprune_rt.demo.report_html import overview_figure, write_report_html
from infoprune_rt.errors import InfopruneError

HOSTILE = """</title></svg><script>alert(1)</script><img src=x onerror="alert(1)">"'&$x_$ {{ 7*7 }}"""
LOADING = {"script", "link", "img", "iframe", "object", "embed", "base", "image", "use", "audio", "video", "source"}


class Page(HTMLParser):
    """Elements, attributes and visible text; checks that everything opened is closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", "".join(self.texts))


def written(report: dict[str, Any], folder: Path) -> tuple[str, Page]:
    write_report_html(report, folder / "report.html")
    html = (folder / "report.html").read_text()
    return html, Page(html)


def test_the_figures_of_the_report_are_on_the_page(tmp_path: Path) -> None:
    report = sample_report()
    report["dense"] = report["variants"][0] | {"parameters": 2_000_000, "latency_ms": {"p50": 40.0, "p90": 44.0}}
    report["compact"]["parameters"] = 1_060_000
    report["compact"]["accuracy"]["overall"] = report["dense"]["accuracy"]["overall"] - 1.26
    report["variants"][3]["latency_ms"] = {"p50": 31.0, "p90": 33.3}
    _, page = written(report, tmp_path)
    for figure in ("−47 %", "2.00 M → 1.06 M", "−1.3", "4.24×", "9.80 s → 2.31 s", "1.2 × 10⁻⁶", "675 M", "460 G"):
        assert figure in page.text
    assert "31.0 ms33.3 ms, −22 %" in page.text
    for variant in report["variants"]:
        assert variant["label"] in page.text
        assert f"{variant['accuracy']['overall']:.1f}" in page.text
    for word in ("2026-11-20", "infoprune demo", "2.13.0+cpu", "do not carry over to a 7B model", "random weights"):
        assert word in page.text


def test_the_kept_heads_are_the_ones_of_largest_zeta(tmp_path: Path) -> None:
    report = sample_report(blocks=2, heads=3)
    report["zeta"], report["heads_per_block"] = [[0.2, 0.9, 0.4], [0.5, 0.5, 0.1]], [1, 0]
    html, page = written(report, tmp_path)
    kept = re.findall(r"block (\d), head (\d): ζ [\d.]+, kept", page.text)
    assert kept == [("0", "1")]
    assert html.count('class="ring"') == 1


def test_blocks_that_stayed_dense_are_called_dense(tmp_path: Path) -> None:
    report = sample_report(blocks=3)
    report["ranks_per_block"], report["taylor"]["ranks"] = [None, 192, None], [64, None, 80]
    html, page = written(report, tmp_path)
    assert "dense · 192 · dense" in page.text
    assert [f"block {block}: {rank}" in page.text for block, rank in ((0, 64), (1, "dense"), (2, 80))] == [True] * 3
    assert html.count('class="chosen"') == 2


def test_the_page_loads_nothing(tmp_path: Path) -> None:
    html, page = written(sample_report(), tmp_path)
    assert not LOADING & set(page.tags)
    assert not {"src", "href", "xlink:href", "srcset", "action"} & {name for name, _ in page.attributes}
    assert "://" not in html
    assert "url(" not in html
    assert "@import" not in html


def hostile(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: hostile(item) for key, item in value.items()}
    if isinstance(value, list):
        return [hostile(item) for item in value]
    return HOSTILE if isinstance(value, str) else value


def test_hostile_texts_are_shown_not_obeyed(tmp_path: Path) -> None:
    report = hostile(sample_report())
    _, page = written(report, tmp_path)
    assert not {"script", "img"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert "{{ 7*7 }}" in page.text
    assert "<script>alert(1)</script>" in page.text
    overview_figure(report, tmp_path / "overview.png")


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    blocks=st.integers(1, 40),
    heads=st.integers(1, 20),
    width=st.integers(1, 70),
    seed=st.integers(0, 10_000),
    data=st.data(),
)
def test_any_report_is_drawn_inside_its_plots(
    blocks: int, heads: int, width: int, seed: int, data: st.DataObject, tmp_path: Path
) -> None:
    report = sample_report(blocks, heads, width, seed)
    for variant in report["variants"]:
        variant["parameters"] = data.draw(st.integers(0, 10**10))
        variant["accuracy"]["overall"] = data.draw(st.floats(0, 100))
    report["dense"]["parameters"] = data.draw(st.integers(0, 10**10))
    report["taylor"]["epsilon"] = data.draw(st.sampled_from([0.0, 1e-9, 0.001, 0.01, 0.3, 1.0]))
    report["taylor"]["ranks"] = data.draw(st.lists(st.none() | st.integers(0, width), min_size=blocks, max_size=blocks))
    report["taylor"]["discarded_energy"] = [
        sorted(data.draw(st.lists(st.floats(0, 1), min_size=1, max_size=5)), reverse=True) for _ in range(blocks)
    ]
    report["fullsize"] |= {"dense_ms": data.draw(st.floats(0, 1e6) | st.just(5e-324)), "compact_ms_all": []}
    html, page = written(report, tmp_path)
    assert page.tags.count("svg") >= 5
    assert not re.search(r"\b(nan|inf|None|Undefined)\b", re.sub(r"<style>.*?</style>", "", html, flags=re.DOTALL))
    for name, value in page.attributes:
        if name in ("x", "y", "cx", "cy", "width", "height") and value:
            assert -1 <= float(value) <= 450


@pytest.mark.parametrize("field", ["variants", "fullsize", "zeta", "command"])
def test_a_report_that_lacks_a_field_is_told(field: str, tmp_path: Path) -> None:
    report = sample_report()
    del report[field]
    with pytest.raises(InfopruneError, match=field):
        write_report_html(report, tmp_path / "report.html")
    assert not list(tmp_path.iterdir())


def test_a_figure_that_is_not_finite_is_named(tmp_path: Path) -> None:
    report = sample_report()
    report["variants"][2]["accuracy"]["text"] = float("nan")
    with pytest.raises(InfopruneError, match=r"report\.variants\[2\]\.accuracy\.text is nan"):
        write_report_html(report, tmp_path / "report.html")
    assert not list(tmp_path.iterdir())


def test_the_overview_is_a_picture_for_the_readme(tmp_path: Path) -> None:
    overview_figure(sample_report(), tmp_path / "overview.png")
    with Image.open(tmp_path / "overview.png") as picture:
        assert picture.size == (1000, 420)
        assert len(picture.convert("RGB").getcolors(1 << 20) or []) > 50
