"""Folders that appear whole or not at all, also when two runs write the same one."""

from __future__ import annotations

import glob
import shutil
import time
import uuid
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_SWAPS = 5
_STALE_S = 24 * 3600.0


def swap_in(part: Path, folder: Path) -> None:
    """Put the finished folder in place; an older one survives until the new one is there.

    Raises:
        OSError: It cannot be put there; the older one is in its place.
    """
    problem = OSError()
    for _ in range(_SWAPS):
        old = beside(folder, "old")
        try:
            if folder.exists():
                folder.rename(old)
            part.rename(folder)
        except (
            OSError
        ) as error:  # perhaps another run put its own in place at this very moment
            problem = error
            with suppress(OSError):
                old.rename(folder)
        else:
            return
        finally:
            shutil.rmtree(old, ignore_errors=True)
    raise problem


def sweep(folder: Path) -> None:
    """Remove what runs that were killed left beside the folder; a younger one may still be at work."""
    for left in folder.parent.glob(f"{glob.escape(folder.name)}.*"):
        if left.suffix in (".part", ".old"):
            with suppress(OSError):
                if time.time() - left.stat().st_mtime > _STALE_S:
                    shutil.rmtree(left, ignore_errors=True)


def beside(path: Path, kind: str) -> Path:
    """A name that no other run into the same folder takes."""
    return path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.{kind}")
