"""Is this installation healthy? Versions, libraries, device, window system, and a reader benchmark; ready to be copied."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from napari_msamil import __version__
from napari_msamil.cache import cache_dir
from napari_msamil.errors import MsamilError
from napari_msamil.hub import HUB_FILE, hub_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_PACKAGES = (
    "napari", "npe2", "numpy", "torch", "torchvision", "timm", "segmentation-models-pytorch", "openslide-python",
    "openslide-bin", "pillow", "tifffile", "imagecodecs", "zarr", "pyvips", "dask", "distributed", "numba",
)  # fmt: skip
_OPTIONAL = {"napari", "npe2", "distributed", "numba"}
_BENCHMARK_S = 3.0
_OPENGL_S = 60


@dataclass(frozen=True)
class DoctorReport:
    """What was found.

    Attributes:
        text: The whole report, one finding per line; lines that begin with `!` are problems.
        healthy: Whether there is no problem.
    """

    text: str
    healthy: bool


def examine(slide: Path | None = None) -> DoctorReport:
    """Examine the installation.

    Args:
        slide: A slide for the reader benchmark; None leaves it out.
    """
    checks: list[Callable[[], Iterator[str]]] = [
        _platform,
        _versions,
        _openslide,
        _device,
        _bindings,
        _window,
        _cache,
        _models,
        _model,
    ]
    lines = [line for check in checks for line in _guarded(check)]
    if slide is not None:
        lines += _guarded(lambda: _benchmark(slide))
    problems = sum(line.startswith("!") for line in lines)
    lines.append("healthy" if not problems else f"{problems} problem(s), marked with !")
    return DoctorReport("\n".join(lines), healthy=not problems)


def _guarded(check: Callable[[], Iterator[str]]) -> list[str]:
    """A check that fails is a finding, not the end of the report."""
    try:
        return list(check())
    except (MsamilError, ImportError, OSError, RuntimeError, ValueError) as error:
        return [f"! {error}"]


def _platform() -> Iterator[str]:
    yield f"napari-msamil {__version__}, Python {platform.python_version()}, {platform.platform()}"
    yield f"processors {os.cpu_count()}"


def _versions() -> Iterator[str]:
    for name in _PACKAGES:
        try:
            yield f"{name} {version(name)}"
        except PackageNotFoundError:
            yield f"{'' if name in _OPTIONAL else '! '}{name} is not installed"


def _openslide() -> Iterator[str]:
    openslide = import_module("openslide")
    yield f"OpenSlide library {openslide.__library_version__}"


def _device() -> Iterator[str]:
    import torch

    from napari_msamil.device import choose_runtime

    runtime = choose_runtime()
    yield f"device auto → {runtime.device}, {runtime.precision}, {torch.get_num_threads()} threads"
    for i in range(torch.cuda.device_count()):
        memory = torch.cuda.get_device_properties(i).total_memory / 2**30
        yield f"cuda:{i} {torch.cuda.get_device_name(i)}, {memory:.0f} GiB"


def _bindings() -> Iterator[str]:
    """PySide6 6.12.0 drops a reference of None with every `QLabel.setText`; before Python 3.12 that ends the program."""
    found = _installed("PySide6-Essentials")
    other = _installed("PyQt6")
    for name, number in (("PyQt6", other), ("PySide6", found)):
        if number:
            yield f"{name} {number}"
    used = os.environ.get("QT_API", "").lower() == "pyside6" or not other
    if found == "6.12.0" and used and sys.version_info < (3, 12):
        yield (
            "! PySide6 6.12.0 crashes on this Python after a few minutes (an error of its own, references to None are lost). "
            "Use PyQt6, another PySide6 (pip install 'PySide6-Essentials!=6.12.0'), or Python 3.12"
        )


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _window() -> Iterator[str]:
    """The OpenGL that napari would draw with; only asked where there is a display."""
    linux = sys.platform.startswith("linux")
    if linux and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        yield "no display: napari cannot open a window here (msamil classify can work)"
        return
    if not _installed("napari"):
        return
    command = [sys.executable, "-m", "napari_msamil.gui.opengl"]
    try:
        asked = subprocess.run(
            command, capture_output=True, text=True, timeout=_OPENGL_S, check=False
        )
    except subprocess.TimeoutExpired:
        yield f"! OpenGL gave no answer within {_OPENGL_S} s"
        return
    if asked.returncode == 0:
        yield asked.stdout.strip()
    else:
        reason = asked.stderr.strip().splitlines() or ["the driver crashed"]
        yield f"! napari cannot draw here ({reason[-1]}). Update the graphics driver, or use msamil classify"


def _cache() -> Iterator[str]:
    folder = cache_dir()
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / f".doctor-{os.getpid()}"
    probe.write_bytes(b"ok")
    probe.unlink()
    size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
    yield f"cache {folder}, {size / 2**20:.1f} MiB, writable"


def _models() -> Iterator[str]:
    """Models fetched from the hub."""
    files = list(hub_folder().glob(f"models--*/snapshots/*/{HUB_FILE}"))
    size = sum(file.stat().st_size for file in files)
    yield f"models {hub_folder()}, {len(files)} fetched, {size / 2**20:.1f} MiB"


def _model() -> Iterator[str]:
    from napari_msamil.checkpoint import load_checkpoint, selftest

    start = time.perf_counter()
    loaded = load_checkpoint("demo")
    seconds = time.perf_counter() - start
    result = selftest(loaded)
    mark = "" if result.ok else "! "
    yield f"{mark}demo model loaded in {seconds:.2f} s, recorded logits differ by {result.max_abs_diff:.1e}"


def _benchmark(path: Path) -> Iterator[str]:
    """Patches per second of this slide: reading in all threads and encoding, each alone, and where the time goes."""
    from napari_msamil.checkpoint import load_checkpoint
    from napari_msamil.config import Strategy
    from napari_msamil.device import choose_runtime
    from napari_msamil.encoding import PatchEncoder
    from napari_msamil.patch_reader import PatchReader
    from napari_msamil.patches import make_grid
    from napari_msamil.resample import fast_resize
    from napari_msamil.slide import open_slide
    from napari_msamil.tissue import find_tissue

    loaded = load_checkpoint("demo")
    encoder = PatchEncoder(loaded, choose_runtime())
    resampler = "Pillow" if fast_resize() is None else "numba, with Pillow's bits"
    with open_slide(path) as slide:
        yield f"{path.name}: backend {slide.info.backend}, {slide.info.level_count} levels, resampled by {resampler}"
        tissue = find_tissue(slide, loaded.config.tissue)
        spec = loaded.config.patches.model_copy(update={"strategy": Strategy.TISSUE})
        reader = PatchReader(slide, make_grid(slide.info, spec, tissue, tissue=tissue))
        start, count, batch = time.perf_counter(), 0, None
        for batch in reader:
            count += len(batch.index)
            if time.perf_counter() - start > _BENCHMARK_S:
                break
        seconds = time.perf_counter() - start
    if batch is None:
        yield "no patch of this slide lies on tissue: nothing to measure"
        return
    yield f"reading {count / seconds:.0f} patches/s in {reader.threads} threads"
    yield f"  read and decode {1e3 * reader.read_s / count:.1f} ms per patch, one thread"
    yield f"  prepare {1e3 * reader.prepare_s / count:.1f} ms per patch, one thread"
    encoder(batch.pixels)
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < _BENCHMARK_S:
        count += len(encoder(batch.pixels))
    seconds = time.perf_counter() - start
    yield f"encoding {count / seconds:.0f} patches/s, {1e3 * seconds / count:.1f} ms per patch"
