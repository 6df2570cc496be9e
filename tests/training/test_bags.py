"""Bag files: what is written is read again, in three formats and from other programs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from napari_msamil.errors import StoreError
from training.bags import SUFFIXES, StoredBag, load_bag, save_bag

if TYPE_CHECKING:
    from pathlib import Path


def make_bag(n: int = 7, dim: int = 5, slide: str = "s1") -> StoredBag:
    g = torch.Generator().manual_seed(n)
    return StoredBag(
        features=torch.randn(n, dim, generator=g),
        coords_xy0=torch.randint(0, 900, (n, 2), generator=g),
        scale=torch.arange(n, dtype=torch.int8) % 3,
        valid=torch.arange(n) != 2,
        size_px0=(512, 1024, 2048),
        size_wh0=(3001, 1999),
        mpp=0.4987,
        scale_names=("20x", "10x", "5x"),
        encoder_id="abc-123",
        slide=slide,
        lesion_fraction=torch.rand(n, generator=g),
        instance_labels=torch.zeros(n, dtype=torch.int8),
    )


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("n", [0, 1, 7])
def test_every_field_survives_a_round_trip(tmp_path: Path, suffix: str, n: int) -> None:
    bag = make_bag(n)
    back = load_bag(save_bag(tmp_path / f"deep/er/slide{suffix}", bag))
    for name in ("features", "coords_xy0", "scale", "valid", "lesion_fraction"):
        assert torch.equal(getattr(back, name), getattr(bag, name)), name
        assert getattr(back, name).dtype == getattr(bag, name).dtype
    assert (back.size_px0, back.size_wh0, back.mpp) == (
        bag.size_px0,
        bag.size_wh0,
        bag.mpp,
    )
    assert (back.scale_names, back.encoder_id, back.slide) == (
        bag.scale_names,
        bag.encoder_id,
        bag.slide,
    )


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_writing_replaces_the_old_bag_and_leaves_nothing_beside(
    tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"slide{suffix}"
    save_bag(path, make_bag(7))
    save_bag(path, make_bag(3))
    assert len(load_bag(path)) == 3
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_coordinates_are_shares_of_the_slide_x_then_y() -> None:
    bag = make_bag(4)
    expected = bag.coords_xy0.numpy() / np.array([3001, 1999])
    np.testing.assert_allclose(bag.coords.numpy(), expected, rtol=1e-6)


def test_h5_has_the_keys_other_programs_read(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    save_bag(tmp_path / "a.h5", make_bag(5))
    with h5py.File(tmp_path / "a.h5") as file:
        assert file["features"].shape == (5, 5)
        assert file["coords"].shape == (5, 2)
        assert file["coords"].attrs["patch_size_level0"] == 512
        assert file["coords"].attrs["level0_width"] == 3001


def test_trident_like_file_is_understood(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "t.h5", "w") as file:
        file["features"] = np.ones((3, 4), np.float16)
        file["features"].attrs["encoder"] = "uni_v1"
        file["coords"] = np.array([[0, 0], [512, 0], [512, 1024]])
        file["coords"].attrs.update(
            patch_size_level0=512, level0_width=2000, level0_height=4000
        )
    bag = load_bag(tmp_path / "t.h5")
    assert (bag.encoder_id, bag.size_px0, bag.size_wh0) == (
        "uni_v1",
        (512,),
        (2000, 4000),
    )
    assert bag.coords[2].tolist() == pytest.approx([0.256, 0.256])
    assert math.isnan(bag.mpp)


def test_bare_tensor_of_clam_is_a_bag_without_positions(tmp_path: Path) -> None:
    torch.save(torch.ones(3, 4), tmp_path / "slide_9.pt")
    bag = load_bag(tmp_path / "slide_9.pt")
    assert bag.slide == "slide_9"
    assert bag.coords.tolist() == [[0.0, 0.0]] * 3


def test_real_foreign_features_are_read(shared_data: Path) -> None:
    path = shared_data / "mil/wsi_features/TCGA-AD-6964-01Z-00-DX1_features.h5"
    bag = load_bag(path)
    assert bag.features.shape == (777, 512)
    assert bag.coords.max() <= 1
    assert len(torch.unique(bag.coords_xy0, dim=0)) == 777


def test_rows_that_do_not_fit_are_refused() -> None:
    bag = make_bag(4)
    with pytest.raises(StoreError, match="4 features but 3 rows in 'scale'"):
        StoredBag(**{**vars(bag), "scale": bag.scale[:3]})


def test_errors_name_the_file_and_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"nothing\.pt.*extract"):
        load_bag(tmp_path / "nothing.pt")
    (tmp_path / "bad.pt").write_text("no tensor")
    with pytest.raises(StoreError, match=r"bad\.pt is no readable bag"):
        load_bag(tmp_path / "bad.pt")
    with pytest.raises(StoreError, match="suffix"):
        save_bag(tmp_path / "a.npy", make_bag())


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    torch.save({"version": 99, "features": torch.ones(1, 1)}, tmp_path / "new.pt")
    with pytest.raises(StoreError, match="format 99"):
        load_bag(tmp_path / "new.pt")


def test_code_in_a_file_is_never_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (print, ("run",))

    torch.save({"features": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(StoreError, match=r"evil\.pt"):
        load_bag(tmp_path / "evil.pt")
