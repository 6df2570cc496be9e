"""Feature bags on disk: `.pt`, `.h5` and `.zarr`, one content.

A bag file always says where its instances lie (`coords_xy0`, `scale`, `size_px0`, `size_wh0`), at which resolution
(`mpp`) and who made the features (`encoder_id`). `.pt` holds plain tensors and is read with `weights_only=True`
(the paper's format); `.h5` uses the keys of CLAM and TRIDENT, `features` and `coords`, so that their tools read ours
and ours read theirs; zarr suits object stores. Files are written beside and renamed.
"""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any, Self
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from napari_msamil.errors import ExtraMissingError, StoreError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from napari_msamil.inference import FeatureBag

FORMAT_VERSION = 1
FOREIGN_SCALES = ("unknown",)
"""Scales of files that say nothing about them."""
_FORMAT = "msamil-bag"
# three libraries, each with error types of its own
_DAMAGE = (
    RuntimeError,
    OSError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    EOFError,
    UnpicklingError,
    BadZipFile,
)
SUFFIXES = (".pt", ".h5", ".zarr")
_ARRAYS = (
    "features",
    "coords_xy0",
    "scale",
    "valid",
    "lesion_fraction",
    "instance_labels",
)


@dataclass(frozen=True, eq=False)
class StoredBag:
    """The instances of one slide as a file holds them.

    Attributes:
        features: float (N, D).
        coords_xy0: int64 (N, 2), top-left corners in level-0 pixels, x then y.
        scale: int8 (N,), index into `scale_names`.
        valid: bool (N,), False where the patch could not be read.
        size_px0: Side of a patch of each scale in level-0 pixels.
        size_wh0: Width and height of level 0; (0, 0) where a foreign file does not say.
        mpp: µm per level-0 pixel; NaN where a foreign file does not say.
        scale_names: For example ("20x", "10x", "5x").
        encoder_id: Who made the features.
        slide: Name of the slide.
        lesion_fraction: float32 (N,) or None.
        instance_labels: int8 (N,) where the truth is known (synthetic data), else None.
        placed: Whether the file said where the instances lie; where not, `coords_xy0` are zeros.
    """

    features: Tensor
    coords_xy0: Tensor
    scale: Tensor
    valid: Tensor
    size_px0: tuple[int, ...]
    size_wh0: tuple[int, int]
    mpp: float
    scale_names: tuple[str, ...]
    encoder_id: str
    slide: str = ""
    lesion_fraction: Tensor | None = None
    instance_labels: Tensor | None = None
    placed: bool = True

    def __post_init__(self) -> None:
        n = len(self.features)
        for name in _ARRAYS[1:]:
            value = getattr(self, name)
            if value is not None and len(value) != n:
                raise StoreError(
                    f"The bag of {self.slide or 'a slide'} has {n} features but {len(value)} rows in {name!r}. "
                    "Extract its features again."
                )

    def __len__(self) -> int:
        return len(self.features)

    @property
    def coords(self) -> Tensor:
        """Corners as shares of the slide: float32 (N, 2), x / W0 and y / H0 in 0 … 1."""
        if min(self.size_wh0) <= 0:
            return torch.zeros(len(self), 2)
        return self.coords_xy0.float() / torch.tensor(self.size_wh0).float()

    @classmethod
    def from_feature_bag(cls, bag: FeatureBag, slide: str = "") -> Self:
        """The library's bag, ready to be written."""
        grid = bag.grid
        return cls(
            features=torch.as_tensor(np.asarray(bag.features)),
            coords_xy0=torch.as_tensor(grid.coords_xy0),
            scale=torch.as_tensor(grid.scale),
            valid=torch.as_tensor(np.asarray(bag.valid, bool)),
            size_px0=tuple(int(s) for s in grid.size_px0),
            size_wh0=grid.size_wh0,
            mpp=float(grid.mpp),
            scale_names=tuple(s.name for s in grid.spec.scales),
            encoder_id=bag.encoder_id,
            slide=slide,
            lesion_fraction=torch.as_tensor(grid.lesion_fraction),
        )


def save_bag(path: Path, bag: StoredBag | FeatureBag, slide: str = "") -> Path:
    """Write a bag in the format its suffix names.

    Args:
        path: `….pt`, `….h5` or `….zarr`.
        bag: A stored bag, or the library's.
        slide: Name of the slide, for the library's bag.

    Raises:
        StoreError: The suffix is unknown or the file cannot be written.
    """
    path = Path(path)
    stored = (
        bag if isinstance(bag, StoredBag) else StoredBag.from_feature_bag(bag, slide)
    )
    write = {".pt": _write_pt, ".h5": _write_h5, ".zarr": _write_zarr}.get(path.suffix)
    if write is None:
        raise StoreError(
            f"{path} is no bag format. Use one of {', '.join(SUFFIXES)} as suffix."
        )
    beside = path.with_name(f"{path.stem}.part{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove(beside)
        write(beside, stored)
        _remove(path)
        beside.replace(path)
    except OSError as error:
        raise StoreError(f"The bag {path} cannot be written: {error}.") from error
    return path


def load_bag(path: Path) -> StoredBag:
    """Read a bag; files of CLAM, TRIDENT and STAMP are understood as far as they say what is needed.

    Raises:
        StoreError: The file is missing, damaged, too new, or no bag.
    """
    path = Path(path)
    read = {".pt": _read_pt, ".h5": _read_h5, ".zarr": _read_zarr}.get(path.suffix)
    if read is None or not path.exists():
        raise StoreError(
            f"There is no bag {path}. Extract features first (msamil-train extract), or check the suffix."
        )
    try:
        arrays, meta = read(path)
    except ExtraMissingError:
        raise
    except Exception as error:
        raise StoreError(
            f"{path} is no readable bag ({error}). Extract its features again."
        ) from error
    return _bag_of(path, arrays, meta)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _meta_of(bag: StoredBag) -> dict[str, Any]:
    return {
        "format": _FORMAT,
        "version": FORMAT_VERSION,
        "size_px0": list(bag.size_px0),
        "size_wh0": list(bag.size_wh0),
        "mpp": bag.mpp,
        "scale_names": list(bag.scale_names),
        "encoder_id": bag.encoder_id,
        "slide": bag.slide,
    }


def _arrays_of(bag: StoredBag) -> dict[str, Tensor]:
    found = {name: getattr(bag, name) for name in _ARRAYS}
    return {
        name: value.detach().cpu().contiguous()
        for name, value in found.items()
        if value is not None
    }


def _write_pt(path: Path, bag: StoredBag) -> None:
    torch.save({**_meta_of(bag), **_arrays_of(bag)}, path)


def _write_h5(path: Path, bag: StoredBag) -> None:
    arrays = _arrays_of(bag)
    with _h5py().File(path, "w") as file:
        for name, value in arrays.items():
            file.create_dataset("coords" if name == "coords_xy0" else name, data=value)
        file.attrs.update(_meta_of(bag))
        file["coords"].attrs.update(
            patch_size_level0=bag.size_px0[0],
            level0_width=bag.size_wh0[0],
            level0_height=bag.size_wh0[1],
            name=bag.slide,
        )
        file["features"].attrs["encoder"] = bag.encoder_id


def _write_zarr(path: Path, bag: StoredBag) -> None:
    import zarr

    group = zarr.open_group(path, mode="w")
    for name, value in _arrays_of(bag).items():
        group.create_array(name, data=value.numpy())
    group.attrs.update({**_meta_of(bag), "mpp": repr(bag.mpp)})


def _read_pt(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    loaded = torch.load(path, map_location="cpu", weights_only=True)
    if isinstance(loaded, Tensor):  # CLAM's bare feature tensor
        return {"features": loaded}, {}
    return {k: v for k, v in loaded.items() if k in _ARRAYS}, loaded


def _read_h5(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    with _h5py().File(path, "r") as file:
        arrays = {
            name: torch.as_tensor(file[name][()]) for name in _ARRAYS if name in file
        }
        if "feats" in file:  # STAMP
            arrays["features"] = torch.as_tensor(file["feats"][()])
        meta: dict[str, Any] = {}
        if "coords" in file:
            arrays["coords_xy0"] = torch.as_tensor(file["coords"][()])
            meta |= _foreign_meta(dict(file["coords"].attrs))
        if "features" in file and "encoder" in file["features"].attrs:
            meta["encoder_id"] = str(file["features"].attrs["encoder"])
        return arrays, meta | dict(file.attrs)


def _read_zarr(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    import zarr

    group = zarr.open_group(path, mode="r")
    arrays = {
        name: torch.as_tensor(np.asarray(group[name]))
        for name in _ARRAYS
        if name in group
    }
    return arrays, dict(group.attrs)


def _foreign_meta(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """What the attributes of CLAM's and TRIDENT's coordinates say, in our words."""
    meta: dict[str, Any] = {}
    if "patch_size_level0" in attrs:
        meta["size_px0"] = [int(attrs["patch_size_level0"])]
    if "level0_width" in attrs and "level0_height" in attrs:
        meta["size_wh0"] = [int(attrs["level0_width"]), int(attrs["level0_height"])]
    if "name" in attrs:
        meta["slide"] = str(attrs["name"])
    return meta


def _bag_of(path: Path, arrays: dict[str, Any], meta: dict[str, Any]) -> StoredBag:
    if "features" not in arrays:
        raise StoreError(f"{path} holds no features. Extract its features again.")
    if int(meta.get("version", 0)) > FORMAT_VERSION:
        raise StoreError(
            f"{path} uses bag format {meta['version']}; this version reads {FORMAT_VERSION}. Update napari-msamil."
        )
    features = arrays["features"]
    if features.dim() == 3 and len(features) == 1:
        features = features[0]
    n = len(features)
    coords = arrays.get("coords_xy0", torch.zeros(n, 2, dtype=torch.int64))
    size_px0 = tuple(int(s) for s in meta.get("size_px0", (0,)))
    size_wh0 = tuple(int(s) for s in meta.get("size_wh0", _extent(coords, size_px0[0])))
    return StoredBag(
        features=features,
        coords_xy0=coords.to(torch.int64),
        scale=arrays.get("scale", torch.zeros(n, dtype=torch.int8)),
        valid=arrays.get("valid", torch.ones(n, dtype=torch.bool)).bool(),
        size_px0=size_px0,
        size_wh0=(size_wh0[0], size_wh0[1]),
        mpp=float(meta.get("mpp", math.nan)),
        scale_names=tuple(str(s) for s in meta.get("scale_names", FOREIGN_SCALES)),
        encoder_id=str(meta.get("encoder_id", "unknown")),
        slide=str(meta.get("slide", path.stem)),
        lesion_fraction=arrays.get("lesion_fraction"),
        instance_labels=arrays.get("instance_labels"),
        placed="coords_xy0" in arrays,
    )


def _extent(coords: Tensor, size_px0: int) -> tuple[int, int]:
    """Smallest slide that holds all corners, for files that do not say."""
    if len(coords) == 0:
        return 0, 0
    far = coords.amax(dim=0)
    return int(far[0]) + max(size_px0, 1), int(far[1]) + max(size_px0, 1)


def _h5py() -> Any:
    try:
        import h5py
    except ImportError as error:
        raise ExtraMissingError("Reading or writing .h5 bags", "train") from error
    return h5py
