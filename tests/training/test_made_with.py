"""Finished parts are taken up for the same question only."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from napari_msamil.checkpoint import save_checkpoint
from napari_msamil.errors import ConfigError
from napari_msamil.models import build_model
from training.bags import StoredBag, save_bag
from training.cohort_table import CohortRow
from training.made_with import FILE, changed, claim, inputs_of, model_key, read_as

from .e2e_parts import tiny_config

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


@pytest.mark.parametrize(
    "words",
    [
        "publish --base b -o m runs/a runs/b",
        "publish runs/a --base b --device cpu runs/b",
        "publish --base b --resume runs/a --jobs 3 runs/b",
        "publish --device=cpu runs/a --base=b runs/b",
        "publish --base b -- runs/a runs/b --out=x",
    ],
)
def test_words_after_an_option_that_does_not_count_do_count(words: str) -> None:
    found = inputs_of(words.split())
    assert found == {"input": "publish runs/a runs/b", "--base": "b"}


def test_a_cohort_counts_by_its_slides_and_not_by_where_they_lie(
    tmp_path: Path,
) -> None:
    head = "slide_id,path,patient_id,label,mask,split,mpp\n"

    def of(*lines: str) -> dict[str, str]:
        (tmp_path / "c.csv").write_text(head + "\n".join(lines) + "\n")
        return inputs_of(["--cohort", tmp_path / "c.csv"])

    first = of("a,old/a.tiff,p1,x,old/a.png,train,0.5", "b,old/b.tiff,p2,y,,test,")
    moved = of("b,new/b.svs,p2,y,,test,", "a,new/a.svs,p1,x,new/a.png,train,0.50")
    assert first == moved
    for other in (
        "a,old/a.tiff,p1,y,old/a.png,train,0.5",  # label
        "a,old/a.tiff,p1,x,old/a.png,val,0.5",  # split
        "a,old/a.tiff,p1,x,old/a.png,train,0.25",  # pixel size
        "a,old/a.tiff,p1,x,,train,0.5",  # mask
    ):
        assert of(other, "b,old/b.tiff,p2,y,,test,") != first


def test_a_model_counts_by_configuration_and_weights_and_not_by_its_name(
    tmp_path: Path,
) -> None:
    def of(name: str, seed: int, **changes: object) -> dict[str, str]:
        torch.manual_seed(seed)
        config = tiny_config().model_copy(update={"name": name, **changes})
        path = tmp_path / f"{name}.safetensors"
        save_checkpoint(path, build_model(config).eval(), {"recipe": name})
        return inputs_of(["--model", path])

    first = of("first", 1)
    assert of("second", 1, licence="MIT") == first
    assert of("first", 2) != first
    assert of("first", 1, temperature=2.0) != first


def test_a_folder_of_bags_counts_by_their_encoder(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "bags"

    def put(name: str, encoder: str) -> dict[str, str]:
        one, none = torch.ones(1, dtype=torch.bool), torch.zeros(1, 2)
        scale = torch.zeros(1, dtype=torch.int8)
        bag = StoredBag(
            none, none.long(), scale, one, (7,), (9, 9), 0.5, ("20x",), encoder
        )
        save_bag(folder / name, bag)
        return inputs_of(["--bags", folder])

    first = put("b.pt", "one")
    assert first["--bags"].startswith("run/bags (one")
    assert put("a.pt", "one") == put("c.pt", "one") == first  # slides may be added
    (folder / "state.pt").write_bytes(b"a training state is no bag")
    assert inputs_of(["--bags", folder]) == first
    assert put("a.pt", "two") != first
    put("a.pt", "one")
    claim(folder, "*.pt", {"[extract]": "tissue"}, begun=False)
    assert inputs_of(["--bags", folder]) != first


def test_how_a_slide_is_read_is_its_pixel_size_and_its_mask(tmp_path: Path) -> None:
    mask = tmp_path / "m.png"
    row = CohortRow("a", tmp_path / "a.tiff", "p", "x", mask=mask, mpp=0.25)
    mask.write_bytes(b"1")
    first = read_as(row, mask=True)
    assert read_as(row, mask=False) == "mpp 0.25"
    mask.write_bytes(b"2")
    assert read_as(row, mask=True) != first
    mask.unlink()
    assert read_as(row, mask=True) == "mpp 0.25, no mask file"
    assert read_as(CohortRow("a", mask, "p", "x"), mask=True) == "its own mpp"


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
