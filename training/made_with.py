"""What a finished part was made with, noted beside it: a second run takes it up only where the question is the same.

A part that is taken up although its model, cohort or settings changed gives a wrong answer that looks right. Device,
precision, jobs and output folder do not count: they say where and how fast, not what.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from napari_msamil.checkpoint import sha256_of
from napari_msamil.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

FILE = "made_with.json"
_HOW = ("--device", "--precision", "--jobs", "-o", "--out", "--output", "--resume")
_FREE = "input"
"""Name of the words that belong to no option."""


def inputs_of(words: Iterable[str | Path]) -> dict[str, str]:
    """What the arguments of a verb ask for, by option.

    Args:
        words: As on a command line. Files count by their content, folders by their name and their parent's (all may have
            moved together), everything else as it is.
    """
    found: dict[str, list[str]] = {}
    option = _FREE
    for word in map(str, words):
        if word.startswith("-") and not _is_number(word):
            option = _FREE if word == "--" else word
            found.setdefault(option, [])
        else:
            found.setdefault(option, []).append(_identity(word))
    found = {k: v for k, v in found.items() if k not in _HOW and (v or k != _FREE)}
    return {option: " ".join(values) for option, values in found.items()}


def changed(folder: Path, part: str, inputs: Mapping[str, str]) -> list[str]:
    """Which inputs differ from those the part was made with; none where nothing is known of it.

    Args:
        folder: Where the part lies.
        part: Its name in there.
        inputs: What it would be made with now.
    """
    known = _read(folder).get(part, {})
    return sorted(
        k for k in {*known, *inputs} if known and known.get(k) != inputs.get(k)
    )


def claim(folder: Path, part: str, inputs: Mapping[str, str], *, begun: bool) -> None:
    """Note what a part is made with, before it is made; refuse one that was made with something else.

    Args:
        folder: Where the part lies.
        part: Its name in there.
        inputs: What it is made with.
        begun: Whether some of it is there already. One of which nothing is known is taken as it is.

    Raises:
        ConfigError: It was made with something else.
    """
    if begun:
        differing = changed(folder, part, inputs)
        if differing:
            raise ConfigError(
                f"{folder} holds {part}, made with another {_listed(differing)} than now. Choose another output folder "
                "with -o, or delete that one to make it anew."
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    whole = folder / FILE
    beside = folder / (FILE + ".part")
    notes = {**_read(folder), part: dict(inputs)}
    beside.write_text(json.dumps(notes, indent=1) + "\n", encoding="utf-8")
    beside.replace(whole)


def model_key(model: str) -> str:
    """A name of a model for folders: that of its file with the start of its hash; a built-in or remote one as it is."""
    path = Path(model)
    text = path.stem or model
    safe = "".join(c if c.isalnum() or c in "-." else "_" for c in text)
    return f"{safe}-{sha256_of(path)[:8]}" if path.is_file() else safe


def _identity(word: str) -> str:
    path, name = Path(word), word.partition("=")
    try:
        if path.is_file():
            return sha256_of(path)
        if Path(name[2]).is_file():
            return f"{name[0]}={sha256_of(Path(name[2]))}"
        return "/".join(path.resolve().parts[-2:]) if path.is_dir() else word
    except OSError:  # not a path at all, a text too long for one
        return hashlib.sha256(word.encode()).hexdigest()


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _read(folder: Path) -> dict[str, dict[str, str]]:
    path = folder / FILE
    if not path.is_file():
        return {}
    notes: dict[str, dict[str, str]] = json.loads(path.read_text(encoding="utf-8"))
    return notes


def _listed(names: list[str]) -> str:
    return " and another ".join(names)
