"""What a finished part was made with, noted beside it: a second run takes it up only where the question is the same.

A part that is taken up although its model, cohort or settings changed gives a wrong answer that looks right. Device,
precision, jobs and output folder do not count: they say where and how fast, not what.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from napari_msamil.checkpoint import read_header, sha256_of
from napari_msamil.errors import CheckpointError, ConfigError, MsamilError

from .cohort_table import read_cohort

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from .cohort_table import CohortRow

FILE = "made_with.json"
_HOW = {
    "--device": 1,
    "--precision": 1,
    "--jobs": 1,
    "-o": 1,
    "--out": 1,
    "--output": 1,
    "--resume": 0,
}
"""Options that do not count, and how many words belong to each: those after them do count."""
_FREE = "input"
"""Name of the words that belong to no option."""
_COHORT = "--cohort"
_SHOWN = {"name", "description", "licence", "intended_use"}
"""Parts of a model's configuration that are only shown."""
_STATES = ("state.pt", "best.pt")
"""Training states: they end like bags and are none."""


def inputs_of(words: Iterable[str | Path]) -> dict[str, str]:
    """What the arguments of a verb ask for, by option.

    Args:
        words: As on a command line. Files count by their content, cohorts by what their slides are and not by where they
            lie, models by configuration and weights and not by their name, folders by their name and their parent's (all
            may have moved together) and by the encoder of the bags in them, everything else as it is.
    """
    found: dict[str, list[str]] = {}
    option, ignored = _FREE, 0
    for word in map(str, words):
        if not word.startswith("-") or _is_number(word):
            if ignored:
                ignored -= 1
            else:
                found.setdefault(option, []).append(_identity(word, option))
            continue
        ignored = 0
        name, joined, value = word.partition("=")
        if name in _HOW:
            option, ignored = _FREE, 0 if joined else _HOW[name]
        elif joined:
            found.setdefault(name, []).append(_identity(value, name))
            option = _FREE
        else:
            option = _FREE if word == "--" else word
            if option != _FREE:
                found.setdefault(option, [])
    return {option: " ".join(values) for option, values in found.items()}


def read_as(row: CohortRow, *, mask: bool) -> str:
    """How a slide is read: the pixel size that the cohort gives and, where it is used, the content of the mask file."""
    said = ["its own mpp" if row.mpp is None else f"mpp {row.mpp:g}"]
    if mask and row.mask is not None:
        there = row.mask.is_file()
        said.append(f"mask {sha256_of(row.mask)[:16]}" if there else "no mask file")
    return ", ".join(said)


def noted(folder: Path, part: str) -> dict[str, str]:
    """What is noted of a part; nothing where nothing is."""
    return dict(_read(folder).get(part, {}))


def note(folder: Path, part: str, inputs: Mapping[str, str]) -> None:
    """Note what a part is made with, in place of what was noted before."""
    folder.mkdir(parents=True, exist_ok=True)
    beside = folder / (FILE + ".part")
    notes = {**_read(folder), part: dict(inputs)}
    beside.write_text(json.dumps(notes, indent=1) + "\n", encoding="utf-8")
    beside.replace(folder / FILE)


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
    note(folder, part, inputs)


def model_key(model: str) -> str:
    """A name of a model for folders: that of its file with the start of its hash; a built-in or remote one as it is."""
    path = Path(model)
    text = path.stem or model
    safe = "".join(c if c.isalnum() or c in "-." else "_" for c in text)
    return f"{safe}-{sha256_of(path)[:8]}" if path.is_file() else safe


def _identity(word: str, option: str) -> str:
    path, pair = Path(word), word.partition("=")
    content = _cohort_content if option == _COHORT else _content
    try:
        if path.is_file():
            return content(path)
        if Path(pair[2]).is_file():
            return f"{pair[0]}={content(Path(pair[2]))}"
        return _folder(path) if path.is_dir() else word
    except OSError:  # not a path at all, a text too long for one
        return _hash(word.encode())


def _content(path: Path) -> str:
    return _model_content(path) if path.suffix == ".safetensors" else sha256_of(path)


def _cohort_content(path: Path) -> str:
    """Slides, patients, labels, splits, pixel sizes and who has a mask: the same data elsewhere is the same cohort."""
    try:
        cohort = read_cohort(path, need_files=False, need_labels=False)
    except MsamilError:  # the verb says what is wrong with it
        return sha256_of(path)
    read = sorted(
        f"{r.slide_id}\t{r.fold}\t{r.mpp}\t{r.mask is not None}" for r in cohort.rows
    )
    return _hash("\n".join([cohort.data_hash, *read]).encode())


def _model_content(path: Path) -> str:
    """Configuration and weights: a model that is published again under another name is the same."""
    try:
        config = read_header(path).config
    except CheckpointError:  # the verb says what is wrong with it
        return sha256_of(path)
    with path.open("rb") as file:  # length of the header, header, weights
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        weights = hashlib.file_digest(file, "sha256").hexdigest()
    header.pop("__metadata__", None)
    said = config.model_dump_json(exclude=_SHOWN), json.dumps(header, sort_keys=True)
    return _hash("\n".join([*said, weights]).encode())


def _folder(path: Path) -> str:
    """Name, and for bags who made them: of those in one folder the first speaks for all."""
    name = "/".join(path.resolve().parts[-2:])
    encoder = _encoder_of_bags(path)
    return f"{name} ({encoder})" if encoder else name


def _encoder_of_bags(folder: Path) -> str:
    from .bags import SUFFIXES, load_bag

    bags = (
        p
        for p in folder.iterdir()
        if p.suffix in SUFFIXES
        and p.name not in _STATES
        and not p.stem.endswith(".part")
    )
    first = min(bags, default=None)
    if first is None:
        return ""
    try:
        made = load_bag(first).encoder_id
    except MsamilError:  # no bag, or a damaged one, which the verb names
        return ""
    chosen = _read(folder).get(f"*{first.suffix}", {})
    return made + (f" {_hash(json.dumps(chosen).encode())[:16]}" if chosen else "")


def _hash(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()


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
