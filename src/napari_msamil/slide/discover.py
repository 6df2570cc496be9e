"""Which files are slides: words of a command line to a list of paths."""

from __future__ import annotations

from pathlib import Path

from napari_msamil.errors import ConfigError

SLIDE_SUFFIXES = frozenset(
    [
        ".svs",
        ".svslide",
        ".ndpi",
        ".vms",
        ".vmu",
        ".scn",
        ".mrxs",
        ".bif",
        ".tif",
        ".tiff",
        ".btf",
        ".czi",
        ".dcm",
        ".png",
        ".jpg",
        ".jpeg",
    ]
)
"""Suffixes looked for in a folder; a file named outright may have any."""


def is_slide_path(path: Path) -> bool:
    """Whether a path looks like a slide: a known suffix, or a folder that holds DICOM files."""
    if path.is_dir():
        return any(
            p.suffix.lower() == ".dcm" and not p.name.startswith(".")
            for p in path.iterdir()
        )
    return path.suffix.lower() in SLIDE_SUFFIXES and not path.name.startswith(".")


def find_slides(words: list[str]) -> list[Path]:
    """Turn files, DICOM folders, folders and globs into slide paths, each once, in order.

    Raises:
        ConfigError: A word names nothing, or nothing was found.
    """
    found: dict[Path, None] = {}
    for word in words:
        found.update(dict.fromkeys(_slides_of(word)))
    if not found:
        raise ConfigError(
            f"No slide was found in {', '.join(words)}. Looked for {' '.join(sorted(SLIDE_SUFFIXES))}."
        )
    return list(found)


def _slides_of(word: str) -> list[Path]:
    path = Path(word)
    if path.is_dir() and not is_slide_path(path):
        return sorted(p for p in path.iterdir() if is_slide_path(p))
    if path.exists():
        return [path]
    matches = []
    if any(c in word for c in "*?["):
        start = Path(path.anchor) if path.is_absolute() else Path()
        pattern = str(path.relative_to(path.anchor)) if path.is_absolute() else word
        matches = sorted(p for p in start.glob(pattern) if is_slide_path(p))
    if not matches:
        raise ConfigError(
            f"There is no slide {word}. Give a file, a folder or a pattern that matches."
        )
    return matches
