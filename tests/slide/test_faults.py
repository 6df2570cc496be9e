"""A bad file, or a bad part of a good one, harms nothing else."""

from __future__ import annotations

import os
import shutil
import struct
import sys
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import openslide
import pytest
import tifffile
from PIL import Image

from napari_msamil import classify
from napari_msamil.errors import RegionError, SlideError
from napari_msamil.slide import open_slide
from napari_msamil.slide.faults import FAULT_RGB
from napari_msamil.slide.pyramid import lazy_pyramid
from napari_msamil.slide.write import write_pyramid_tiff

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from napari_msamil.synthetic import SynthSlide


@pytest.fixture
def slide_path(tmp_path: Path, picture: NDArray[np.uint8]) -> Path:
    return write_pyramid_tiff(tmp_path / "slide ü 1.svs", picture, mpp=0.5)


def spoil_tile(path: Path, number: int) -> None:
    """Overwrite one tile of level 0 with zeros."""
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0]
        offset, count = page.dataoffsets[number], page.databytecounts[number]
    with path.open("r+b") as stream:
        stream.seek(offset)
        stream.write(bytes(count))


def refusal(action: Callable[[], object]) -> str | None:
    """The sentence of a slide error, or None if the action succeeds; other errors pass."""
    try:
        action()
    except SlideError as error:
        return str(error)
    return None


@pytest.mark.parametrize("backend", ["direct", "openslide"])
def test_threads_that_hit_a_corrupt_tile_do_not_disturb_the_others(
    slide_path: Path, backend: str
) -> None:
    """OpenSlide's handle is dead after an error; readers of other regions must not see that."""
    with open_slide(slide_path, backend=backend) as slide:
        good = {
            x: slide.read_region((x, 700), 0, (256, 256)) for x in (0, 256, 512, 768)
        }
    spoil_tile(slide_path, 8)
    faults = []

    with open_slide(slide_path, backend=backend) as slide:

        def read(number: int) -> None:
            if number % 3 == 0:
                with pytest.raises(RegionError):
                    slide.read_region((520, 260), 0, (200, 200))
                faults.append(number)
            else:
                x = number % 4 * 256
                np.testing.assert_array_equal(
                    slide.read_region((x, 700), 0, (256, 256)), good[x]
                )

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(read, range(120)))
    assert len(faults) == 40


def test_viewer_shows_a_corrupt_tile_striped_and_is_told(slide_path: Path) -> None:
    spoil_tile(slide_path, 8)
    told: list[RegionError] = []
    with open_slide(slide_path) as slide:
        level0 = lazy_pyramid(slide, on_fault=told.append)[0].compute()
        clean = slide.read_region((0, 0), 0, (512, 256))
    np.testing.assert_array_equal(level0[:256, :512], clean)
    bad = level0[256:512, 512:768]
    assert (bad == FAULT_RGB).all(axis=2).mean() == pytest.approx(0.5, abs=0.05)
    assert not (bad == 255).all(axis=2).any()
    assert len(told) == 1


def test_slide_opens_although_its_richest_tile_is_corrupt(slide_path: Path) -> None:
    """The comparison at opening cannot be made then; OpenSlide reads the rest."""
    with tifffile.TiffFile(slide_path) as tiff:
        heaviest = int(np.argmax(tiff.pages[0].databytecounts))
    spoil_tile(slide_path, heaviest)
    with open_slide(slide_path) as slide:
        assert slide.read_level(1, (0, 0), (100, 100)).shape == (100, 100, 3)


@pytest.mark.parametrize("share", [0.02, 0.3, 0.7, 0.98])
def test_truncated_slide_is_refused_or_read_as_far_as_it_goes(
    slide_path: Path, share: float
) -> None:
    data = slide_path.read_bytes()
    slide_path.write_bytes(data[: int(len(data) * share)])
    sentence = refusal(lambda: open_slide(slide_path))
    if sentence is None:
        with open_slide(slide_path) as slide:
            sentence = refusal(lambda: slide.thumbnail((50, 40)))
    assert sentence is None or slide_path.name in sentence


@pytest.mark.skipif(
    sys.platform == "win32", reason="Windows does not remove open files"
)
def test_file_removed_while_open_ends_in_pixels_or_a_sentence(slide_path: Path) -> None:
    for backend in ("direct", "openslide"):
        copy = slide_path.with_name(f"{backend}.svs")
        shutil.copy(slide_path, copy)
        with open_slide(copy, backend=backend) as slide:
            copy.unlink()
            sentence = refusal(lambda s=slide: s.read_region((300, 300), 0, (500, 500)))
            assert sentence is None or copy.name in sentence
            with pytest.raises(SlideError, match=copy.name):
                slide.reopen()


@pytest.mark.skipif(
    sys.platform == "win32" or os.geteuid() == 0, reason="rights do not bind this user"
)
def test_file_without_right_to_read_is_a_sentence(slide_path: Path) -> None:
    slide_path.chmod(0)
    with pytest.raises(SlideError, match="rights"):
        open_slide(slide_path)


def test_missing_file_empty_folder_and_directory_are_sentences(tmp_path: Path) -> None:
    with pytest.raises(SlideError, match="There is no file"):
        open_slide(tmp_path / "a.svs")
    with pytest.raises(SlideError, match="holds no DICOM"):
        open_slide(tmp_path)
    with pytest.raises(SlideError, match="no backend"):
        open_slide(tmp_path, backend="magic")


def test_wrong_suffix_is_read_by_content(
    slide_path: Path, shared_data: Path, tmp_path: Path
) -> None:
    renamed = slide_path.rename(slide_path.with_name("slide.jpg"))
    with open_slide(renamed) as slide:
        assert slide.info.vendor == "aperio"
    shutil.copy(shared_data / "images" / "boxes.png", tmp_path / "boxes.svs")
    with open_slide(tmp_path / "boxes.svs") as slide:
        assert slide.info.backend == "plain"


@pytest.mark.parametrize("keep", ["boxes_0.dcm", "boxes_1.dcm"])
def test_dicom_folder_with_a_missing_instance(
    shared_data: Path, tmp_path: Path, keep: str
) -> None:
    """Without the volume there is no slide; without the thumbnail the slide still opens."""
    shutil.copy(shared_data / "slides" / "boxes_dcm" / keep, tmp_path / keep)
    sentence = refusal(lambda: open_slide(tmp_path))
    assert (sentence is None) == (keep == "boxes_0.dcm")
    if sentence is not None:
        assert tmp_path.name in sentence
        assert keep in sentence
        return
    with open_slide(tmp_path) as slide:
        assert slide.info.size_wh0 == (16, 16)
        assert slide.info.associated_images == ()


def test_dicom_folder_ignores_foreign_files(shared_data: Path, tmp_path: Path) -> None:
    for file in (shared_data / "slides" / "boxes_dcm").iterdir():
        shutil.copy(
            file, tmp_path / file.stem
        )  # without suffix, as archives deliver them
    (tmp_path / "DICOMDIR.txt").write_text("no slide")
    with open_slide(tmp_path) as slide:
        assert slide.info.vendor == "dicom"


def png_of_claimed_size(path: Path, width: int, height: int) -> Path:
    """A PNG of a few bytes whose header claims a size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data))
            + kind
            + data
            + struct.pack(">I", zlib.crc32(kind + data))
        )

    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(bytes(1000)))
        + chunk(b"IEND", b"")
    )
    return path


@pytest.mark.parametrize(
    "size", [(9_000, 9_000), (60_000, 60_000), (2_000_000, 2_000_000)]
)
def test_image_too_large_for_memory_is_sent_to_convert(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    path = png_of_claimed_size(tmp_path / "bomb.png", *size)
    with pytest.raises(SlideError, match=r"msamil convert bomb\.png"):
        open_slide(path)


def test_damaged_image_is_a_sentence(
    tmp_path: Path, picture: NDArray[np.uint8]
) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(picture).save(path)
    path.write_bytes(path.read_bytes()[:30_000])
    with pytest.raises(SlideError, match=r"a\.png is a damaged PNG"):
        open_slide(path)


def test_tiff_whose_header_claims_a_huge_tile_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path, byteorder=">") as writer:
        writer.write(
            np.zeros((64, 64, 3), np.uint8),
            tile=(64, 64),
            photometric="rgb",
            metadata=None,
        )
    data = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as tiff:
        tags = {
            name: tiff.pages[0].tags[name]
            for name in ("TileWidth", "TileLength", "ImageWidth", "ImageLength")
        }
    for tag in tags.values():
        data[tag.offset + 2 : tag.offset + 4] = struct.pack(">H", 4)
        data[tag.offset + 8 : tag.offset + 12] = struct.pack(">I", 65_536)
    path.write_bytes(data)
    with pytest.raises(SlideError, match=r"a\.tif"):
        open_slide(path)


def test_tiff_whose_list_of_tiles_was_cut_short_is_a_sentence(slide_path: Path) -> None:
    """Found by fuzzing: offsets for every tile, but only one byte count."""
    with tifffile.TiffFile(slide_path) as tiff:
        assert tiff.is_bigtiff
        tag = tiff.pages[0].tags["TileByteCounts"]
    with slide_path.open("r+b") as stream:
        stream.seek(tag.offset + 4)
        stream.write(struct.pack("<Q", 1))
    sentence = refusal(lambda: open_slide(slide_path, backend="direct"))
    assert sentence is not None
    assert slide_path.name in sentence


def test_transparent_pixels_get_the_background_colour(shared_data: Path) -> None:
    """`convert("RGB")` alone would make them black."""
    path = shared_data / "slides" / "small.svs"
    raw = openslide.OpenSlide(path).read_region((-8, -8), 0, (16, 16))
    assert raw.getpixel((0, 0))[3] == 0
    for backend in ("direct", "openslide"):
        with open_slide(path, backend=backend) as slide:
            assert (slide.read_region((-8, -8), 0, (16, 16))[:8] == 255).all()


def test_many_handles_are_closed(slide_path: Path) -> None:
    psutil = pytest.importorskip("psutil")
    process = psutil.Process()
    before = len(process.open_files())
    for _ in range(30):
        for backend in ("direct", "openslide"):
            with open_slide(slide_path, backend=backend) as slide:
                slide.read_region((0, 0), 0, (10, 10))
    assert len(process.open_files()) <= before
    assert threading.active_count() < 50


def test_corrupt_tile_of_a_slide_without_a_pyramid_costs_its_patches_and_no_more(
    tmp_path: Path, painted: SynthSlide, tiny_checkpoint: Path
) -> None:
    """The mask goes on over it, from the nearest colours; its patches are skipped, counted and reported."""
    path = write_pyramid_tiff(tmp_path / "a.svs", [painted.pixels], mpp=painted.mpp)
    with open_slide(path) as slide:
        whole = slide.thumbnail((180, 140)).astype(int)
    spoil_tile(path, 17)
    with open_slide(path) as slide:
        damaged = slide.thumbnail((180, 140)).astype(int)
    apart = np.abs(whole - damaged).max(axis=2) > 3
    rows, columns = np.nonzero(apart)
    assert apart.any()
    assert np.ptp(rows) <= 38  # a tile of 256 and a part of 60 on either side
    assert np.ptp(columns) <= 38
    assert not (damaged[apart] == 255).all(axis=1).any()
    result = classify(
        path, tiny_checkpoint, strategy="tissue", cache=False, precision="fp32"
    )
    lost = int((~result.valid).sum())
    assert 0 < lost < len(result.valid)
    assert any(f"{lost} of {len(result.valid)} patches" in w for w in result.warnings)
    assert (result.attention[~result.valid] == 0).all()
