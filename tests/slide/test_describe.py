"""What `msamil info` says."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from napari_msamil.slide import open_slide
from napari_msamil.slide.describe import describe_json, describe_text

if TYPE_CHECKING:
    from pathlib import Path


def test_description_names_size_pixel_size_source_and_backend(
    shared_data: Path,
) -> None:
    with open_slide(shared_data / "slides" / "CMU-1-Small-Region.svs") as slide:
        text = describe_text(slide.info)
        values = json.loads(json.dumps(describe_json(slide.info)))
    assert "2220 × 2967 px (1.11 × 1.48 mm)" in text
    assert "0.499 µm, from the file's own tag; 20x objective" in text
    assert "tiles decoded directly" in text
    assert values["mpp"] == 0.499
    assert values["mpp_source"] == "tag"
    assert values["levels"] == [
        {
            "width": 2220,
            "height": 2967,
            "downsample": 1.0,
            "tile_width": 240,
            "tile_height": 240,
            "mpp": 0.499,
        }
    ]
    assert values["associated_images"] == ["label", "macro", "thumbnail"]


def test_warnings_and_the_unknown_pixel_size_are_shown(shared_data: Path) -> None:
    with open_slide(shared_data / "slides" / "boxes.tiff") as slide:
        text = describe_text(slide.info)
        values = describe_json(slide.info)
    assert "unknown (give it with --mpp)" in text
    assert "352.8" in text
    assert values["mpp"] is None
    assert len(values["warnings"]) == 1


def test_patient_name_of_a_dicom_slide_is_not_shown(shared_data: Path) -> None:
    with open_slide(shared_data / "slides" / "dicom_highdicom_sm_image") as slide:
        everything = describe_text(slide.info) + json.dumps(describe_json(slide.info))
    assert "Test" not in everything.replace("data", "")
    assert "Patient" not in everything
