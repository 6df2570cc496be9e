"""The report is one file that needs nothing else, and shows what it should."""

from __future__ import annotations

import base64
import dataclasses
import io
import re
from html.parser import HTMLParser
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from napari_msamil import doctor
from napari_msamil.doctor import examine
from napari_msamil.pipeline import classify
from napari_msamil.report import TOP_PATCHES, write_report
from napari_msamil.slide import open_slide

if TYPE_CHECKING:
    from pathlib import Path

    from napari_msamil.result import SlideResult


@pytest.fixture(scope="module")
def result(painted_svs: Path, tiny_checkpoint: Path) -> SlideResult:
    return classify(painted_svs, tiny_checkpoint, precision="fp32", cache=False)


def report_of(result: SlideResult, path: Path, slide_path: Path) -> str:
    with open_slide(slide_path) as slide:
        return write_report(result, path, slide).read_text("utf-8")


@pytest.fixture
def html(result: SlideResult, painted_svs: Path, tmp_path: Path) -> str:
    return report_of(result, tmp_path / "report.html", painted_svs)


def test_it_needs_nothing_beside_it(html: str) -> None:
    assert not re.search(r'(src|href)="(?!data:)', html)
    assert "<script" not in html
    pictures = re.findall(r"data:image/png;base64,([A-Za-z0-9+/=]+)", html)
    for data in pictures:
        Image.open(io.BytesIO(base64.b64decode(data))).verify()
    assert len(pictures) > TOP_PATCHES


def test_it_holds_answer_warnings_and_provenance(
    html: str, result: SlideResult
) -> None:
    for text in (
        result.prediction,
        result.model_sha256,
        result.info.quickhash,
        "Not for diagnosis",
        "no medical meaning",
    ):
        assert text in html
    for name in result.classes:
        assert name in html
    assert html.count("Query ") == 10


def test_tags_are_balanced(html: str) -> None:
    stack: list[str] = []

    class Check(HTMLParser):
        def handle_starttag(self, tag: str, attrs: object) -> None:
            if tag not in ("img", "meta"):
                stack.append(tag)

        def handle_endtag(self, tag: str) -> None:
            assert stack.pop() == tag

    Check().feed(html)
    assert not stack


def test_names_cannot_inject_markup(
    result: SlideResult, painted_svs: Path, tmp_path: Path
) -> None:
    evil = "<img src=x onerror=alert(1)>"
    bad = dataclasses.replace(result, model_name=evil, warnings=(evil,))
    html = report_of(bad, tmp_path / "r.html", painted_svs)
    assert evil not in html
    assert "&lt;img src=x" in html


def test_a_partial_result_says_so(
    result: SlideResult, painted_svs: Path, tmp_path: Path
) -> None:
    partial = dataclasses.replace(result, partial=True)
    assert "Partial result" in report_of(partial, tmp_path / "r.html", painted_svs)


def test_doctor_warns_of_the_bindings_that_crash(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """PySide6 6.12.0 with a Python whose None is counted, and only where it is what napari would use."""
    found = {"PySide6-Essentials": "6.12.0", "PyQt6": "6.11.0"}
    monkeypatch.setattr(doctor, "_installed", found.get)
    monkeypatch.setattr(doctor.sys, "version_info", (3, 11, 7))
    monkeypatch.delenv("QT_API", raising=False)
    assert list(doctor._bindings()) == ["PyQt6 6.11.0", "PySide6 6.12.0"]
    monkeypatch.setenv("QT_API", "pyside6")
    assert "PySide6-Essentials!=6.12.0" in list(doctor._bindings())[-1]
    monkeypatch.setattr(doctor.sys, "version_info", (3, 12, 0))
    assert len(list(doctor._bindings())) == 2


def test_doctor_reports_versions_device_and_cache() -> None:
    text = examine().text
    for word in (
        "napari-msamil",
        "Python",
        "torch",
        "OpenSlide library",
        "device",
        "cache",
    ):
        assert word in text
