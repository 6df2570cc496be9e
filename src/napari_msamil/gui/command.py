"""The command line that repeats what the workbench would do now."""

from __future__ import annotations

import hashlib
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from napari_msamil.errors import MsamilError
from napari_msamil.gui.strings import RUN
from napari_msamil.masks import MaskSource

if TYPE_CHECKING:
    from napari_msamil.gui.session import Session
    from napari_msamil.gui.settings import Settings
    from napari_msamil.masks import SlideMask


def results_folder() -> Path:
    """Where the workbench proposes to write results."""
    return Path.home() / "msamil-results"


def command_for(
    session: Session, settings: Settings, output: Path | None = None
) -> str:
    """The `msamil classify` line for the current state; an edited mask is saved so that the line can name it.

    Args:
        session: What the viewer knows.
        settings: Device and precision.
        output: Folder of results; None proposes one.

    Returns:
        One line for a shell, quoted.

    Raises:
        MsamilError: There is no slide.
    """
    if session.slide is None:
        raise MsamilError(RUN.no_slide)
    info, choice = session.slide.info, session.choice
    output = output or results_folder()
    words = ["msamil", "classify", str(info.path), "--model", session.model_ref]
    words += ["-o", str(output)]
    if session.mask is not None and session.mask.source is not MaskSource.MODEL:
        file = session.mask_file
        if file is None or session.mask is not session.original_mask:
            file = save_mask(session.mask, output, info.name)
        words += ["--mask", str(file)]
    if choice.strategy is not None:
        words += ["--patches", str(choice.strategy)]
    if choice.threshold is not None:
        words += ["--threshold", f"{choice.threshold:g}"]
    if str(info.mpp_source) == "user":
        words += ["--mpp", f"{info.mpp:.6g}"]
    if settings.device != "auto":
        words += ["--device", settings.device]
    if settings.precision != "auto":
        words += ["--precision", settings.precision]
    return shlex.join(words)


def save_mask(mask: SlideMask, folder: Path, name: str) -> Path:
    """Save a mask exactly (PNG of its grid) under a name made from its content; the same mask is saved once."""
    from napari_msamil.annotations import write_mask_png

    digest = hashlib.sha256(mask.mask.tobytes()).hexdigest()[:8]
    path = folder / "masks" / f"{name}-{digest}.png"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_mask_png(mask, path)
    return path
