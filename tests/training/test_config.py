"""Recipes are checked name by name; a wrong one is answered with the nearest known one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_msamil.errors import ConfigError
from training.config import (
    RECIPES,
    AugmentSpec,
    E2ESpec,
    ExtractSpec,
    describe,
    model_config,
    read_recipe,
    section,
)
from training.dino_task import DinoSpec
from training.mhim_task import MhimSpec
from training.mil_task import MilSpec
from training.run import RunSpec
from training.segment_task import SegmentSpec
from training.table_training import TrainingTablesSpec

if TYPE_CHECKING:
    from pathlib import Path

    from napari_msamil.config import Spec


TABLES: dict[str, type[Spec]] = {
    "segment": SegmentSpec,
    "e2e": E2ESpec,
    "extract": ExtractSpec,
    "mil": MilSpec,
    "mhim": MhimSpec,
    "dino": DinoSpec,
    "tables": TrainingTablesSpec,
}


def _recipe(folder: Path, text: str) -> Path:
    path = folder / "recipe.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_values_of_the_file_are_read_and_overridden_with_types(tmp_path: Path) -> None:
    path = _recipe(tmp_path, "[e2e]\nepochs = 7\nlr_mil = 1e-3\n")
    raw = read_recipe(
        path, ["e2e.epochs=9", "e2e.sampling=stratified", "e2e.augment.stain=0.25"]
    )
    spec = section(raw, "e2e", E2ESpec)
    assert (spec.epochs, spec.lr_mil, spec.sampling) == (9, 1e-3, "stratified")
    assert spec.augment.stain == 0.25
    assert spec.instances == 200


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("e2e.epoch=3", "did you mean 'epochs'"),
        ("e2e.lr_encodr=1e-3", "did you mean 'lr_encoder'"),
        ("e2e.augment.stian=0.2", "did you mean 'stain'"),
    ],
)
def test_a_misspelt_name_is_answered_with_the_nearest(override: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=hint):
        section(read_recipe(None, [override]), "e2e", E2ESpec)


@pytest.mark.parametrize(
    "override",
    ["e2e.epochs=0", "e2e.epochs=many", "e2e.batchnorm=thawed", "e2e.augment.stain=2"],
)
def test_a_value_out_of_range_names_its_place(override: str) -> None:
    place = override.split("=")[0].replace(".", r"\.")
    with pytest.raises(ConfigError, match=place):
        section(read_recipe(None, [override]), "e2e", E2ESpec)


def test_all_problems_are_listed_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        section(read_recipe(None, ["e2e.epochs=0", "e2e.chunkk=2"]), "e2e", E2ESpec)
    assert "e2e.epochs" in str(caught.value)
    assert "'chunk'" in str(caught.value)


@pytest.mark.parametrize("text", ["e2e.epochs", "=3", ""])
def test_an_override_without_key_and_value_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"section.key=value"):
        read_recipe(None, [text])


def test_an_override_cannot_make_a_table_of_a_value(tmp_path: Path) -> None:
    path = _recipe(tmp_path, "[e2e]\nepochs = 7\n")
    with pytest.raises(ConfigError, match="is a value, not a table"):
        read_recipe(path, ["e2e.epochs.more=1"])


def test_a_missing_recipe_names_the_built_in_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="demo"):
        read_recipe(tmp_path / "absent.toml")


def test_broken_toml_names_the_file(tmp_path: Path) -> None:
    path = _recipe(tmp_path, "[e2e\n")
    with pytest.raises(ConfigError, match=r"recipe.toml"):
        read_recipe(path)


@pytest.mark.parametrize(
    "name", [*sorted(p.stem for p in RECIPES.glob("*e2e.toml")), "demo"]
)
def test_built_in_recipes_are_valid(name: str) -> None:
    raw = read_recipe(name)
    assert section(raw, "e2e", E2ESpec).epochs >= 1
    assert len(model_config(raw, ("a", "b")).patches.scales) == 3


@pytest.mark.parametrize("name", sorted(p.stem for p in RECIPES.glob("*.toml")))
def test_every_table_of_a_built_in_recipe_is_known_and_valid(name: str) -> None:
    raw = read_recipe(name)
    stages = raw.pop("stages", None)
    if stages is not None:
        assert section({"run": {"stages": stages}}, "run", RunSpec).stages
    assert model_config(raw, ("a", "b")).patches.scales
    raw.pop("model", None)
    assert set(raw) <= set(TABLES)
    for table in raw:
        section(raw, table, TABLES[table])


def test_the_model_table_changes_a_preset_deeply() -> None:
    raw = read_recipe(
        None, ["model.preset=small", "model.name=x", "model.encoder.layers=3"]
    )
    config = model_config(raw, ("a", "b", "c"))
    assert (config.name, config.encoder.layers, config.encoder.dim) == ("x", 3, 128)
    assert config.classes == ("a", "b", "c")


def test_a_model_needs_two_classes_and_a_known_preset() -> None:
    with pytest.raises(ConfigError, match="two classes"):
        model_config({}, ())
    with pytest.raises(ConfigError, match="preset"):
        model_config({"model": {"preset": "huge"}}, ("a", "b"))


def test_every_setting_is_described_in_help() -> None:
    text = describe(E2ESpec, "e2e")
    for name in E2ESpec.model_fields:
        line = next(x for x in text.splitlines() if x.strip().startswith(f"e2e.{name}"))
        assert len(line.split(": ", 1)[1]) > 8, name
    assert "e2e.augment.stain" in text


@given(
    st.builds(
        AugmentSpec,
        stain=st.floats(0, 0.99),
        brightness=st.floats(0, 0.99),
        geometry=st.booleans(),
        noise=st.floats(0, 64),
    ),
    st.integers(1, 10_000),
)
@settings(deadline=None, max_examples=50)
def test_a_spec_survives_json(augment: AugmentSpec, epochs: int) -> None:
    spec = E2ESpec(epochs=epochs, augment=augment)
    assert E2ESpec.model_validate_json(spec.model_dump_json()) == spec
