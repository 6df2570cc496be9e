"""Folders that appear whole or not at all, also when two runs write the same one."""

from __future__ import annotations

import glob
import hashlib
import os
import platform
import re
import shutil
import time
import uuid
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_SWAPS = 5
_STALE_S = 24 * 3600.0
_HOST = hashlib.blake2b(platform.node().encode(), digest_size=3).hexdigest()
_OWNER = re.compile(r"\.([0-9a-f]{6})-([0-9]+)-[0-9a-f]{8}\.[a-z]+$")


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
    """Remove what killed runs left beside a folder or file: their process is gone, or nobody touched it for a day."""
    for left in folder.parent.glob(f"{glob.escape(folder.name)}.*"):
        if left.suffix in (".part", ".old"):
            with suppress(OSError):
                if _is_orphan(left) or time.time() - left.stat().st_mtime > _STALE_S:
                    if left.is_dir():
                        shutil.rmtree(left, ignore_errors=True)
                    else:
                        left.unlink()


def beside(path: Path, kind: str) -> Path:
    """A name that no other run into the same folder takes, and that says whose it is."""
    owner = f"{_HOST}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    return path.with_name(f"{path.name}.{owner}.{kind}")


def _is_orphan(left: Path) -> bool:
    """Whether the process that made it ran on this machine and is gone."""
    owner = _OWNER.search(left.name)
    if owner is None or owner[1] != _HOST or os.name != "posix":
        return False
    try:
        os.kill(int(owner[2]), 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False  # it is somebody else's
    return False
