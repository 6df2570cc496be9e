"""The identity of a file's pixels, where the format brings none."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20


def file_quickhash(path: Path) -> str:
    """SHA-256 over the size and the first and last MiB of a file: cheap on any size, changes with a new export.

    Args:
        path: The file; of a folder, its files by name.
    """
    digest = hashlib.sha256()
    files = (
        sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path]
    )
    for file in files:
        size = file.stat().st_size
        digest.update(f"{size};".encode())
        with file.open("rb") as stream:
            digest.update(stream.read(MIB))
            stream.seek(max(MIB, size - MIB))
            digest.update(stream.read(MIB))
    return digest.hexdigest()
