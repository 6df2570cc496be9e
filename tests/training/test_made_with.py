"""Finished parts are taken up for the same question only."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from napari_msamil.errors import ConfigError
from training.made_with import FILE, changed, claim, inputs_of, model_key

if TYPE_CHECKING:
    from pathlib import Path


def test_files_count_by_content_folders_by_place_and_the_device_not_at_all(
    tmp_path: Path,
) -> None:
    for name, text in (("a.csv", "x"), ("b.csv", "x"), ("c.csv", "y")):
        (tmp_path / name).write_text(text)
    for name in ("run/bags", "moved/run/bags", "run/other"):
        (tmp_path / name).mkdir(parents=True)

    def of(table: str, bags: str, *more: str) -> dict[str, str]:
        words = ["mil", "--cohort", tmp_path / table, "--bags", tmp_path / bags]
        return inputs_of([*words, *more])

    first = of("a.csv", "run/bags", "--device", "cpu", "-o", "x", "--", "--set", "a=-1")
    again = of("b.csv", "moved/run/bags", "--set", "a=-1", "--device", "cuda:1")
    assert first == again
    assert set(first) == {"input", "--cohort", "--bags", "--set"}
    assert of("c.csv", "run/bags")["--cohort"] != first["--cohort"]
    assert of("a.csv", "run/other")["--bags"] != first["--bags"]
    scales = [inputs_of(["--model", f"20x={tmp_path / n}"]) for n in ("a.csv", "b.csv")]
    assert scales[0] == scales[1] != inputs_of(["--model", f"20x={tmp_path / 'c.csv'}"])


@given(
    st.lists(st.sampled_from(["a", "1e-3", "-2.5", "k=v"]), max_size=4),
    st.lists(st.sampled_from(["a", "1e-3", "-2.5", "k=v"]), max_size=4),
)
def test_values_belong_to_the_option_before_them(
    one: list[str], two: list[str]
) -> None:
    found = inputs_of(["--one", *one, "--jobs", "3", "--two", *two])
    assert found == {"--one": " ".join(one), "--two": " ".join(two)}


def test_a_part_is_noted_before_it_is_made_and_refused_for_another_question(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "out"
    claim(folder, "table.csv", {"--model": "a"}, begun=False)
    claim(folder, "table.csv", {"--model": "b"}, begun=False)  # nothing was made
    claim(folder, "other.csv", {"--model": "a"}, begun=False)
    assert json.loads((folder / FILE).read_text()) == {
        "table.csv": {"--model": "b"},
        "other.csv": {"--model": "a"},
    }
    claim(folder, "table.csv", {"--model": "b"}, begun=True)
    with pytest.raises(ConfigError, match=r"table\.csv, made with another --model"):
        claim(folder, "table.csv", {"--model": "a"}, begun=True)
    with pytest.raises(ConfigError, match="another --model and another --set than now"):
        claim(folder, "table.csv", {"--set": "x=1"}, begun=True)
    assert list(folder.iterdir()) == [folder / FILE]


def test_what_an_older_version_made_is_taken_as_it_is(tmp_path: Path) -> None:
    claim(tmp_path, "table.csv", {"--model": "a"}, begun=True)
    assert changed(tmp_path, "table.csv", {"--model": "b"}) == []


def test_models_of_one_name_have_folders_of_their_own(tmp_path: Path) -> None:
    keys = []
    for folder in ("x", "y"):
        path = tmp_path / folder / "model.safetensors"
        path.parent.mkdir()
        path.write_text(folder)
        keys.append(model_key(str(path)))
    assert keys[0] != keys[1]
    assert all(key.startswith("model-") for key in keys)
    assert model_key("demo") == "demo"
    assert model_key("hf://owner/name@main") == "name_main"
