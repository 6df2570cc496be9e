"""The house keeps its shape: light imports, every manifest command resolves, every package is shipped."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parent.parent
HEAVY = ("torch", "timm", "segmentation_models_pytorch", "torchvision")
WINDOW = ("napari", "qtpy", "magicgui", "vispy", "PyQt6", "PySide6")


def loaded_after(code: str) -> set[str]:
    """Top-level modules loaded by a fresh interpreter that runs `code`."""
    script = (
        f"{code}\nimport sys; print(*sorted({{m.split('.')[0] for m in sys.modules}}))"
    )
    run = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        cwd=CHECKOUT,
    )
    return set(run.stdout.splitlines()[-1].split())


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert not loaded_after("import napari_msamil").intersection(HEAVY + WINDOW)


def test_help_of_both_commands_loads_nothing_heavy() -> None:
    code = "import {m} as c\ntry: c.main(['--help'])\nexcept SystemExit: pass"
    for module in ("napari_msamil.cli", "training.cli"):
        assert not loaded_after(code.format(m=module)).intersection(HEAVY + WINDOW), (
            module
        )


@pytest.mark.gui
def test_opening_the_dock_module_loads_no_torch() -> None:
    names = loaded_after("import napari_msamil.gui.workbench")
    assert not names.intersection(HEAVY)


def test_the_engine_and_training_know_no_window() -> None:
    code = "import napari_msamil.pipeline, napari_msamil.batch, napari_msamil.report, training.e2e, training.mhim"
    assert not loaded_after(code).intersection(WINDOW)


def test_every_package_on_disk_is_in_the_package_list() -> None:
    listed = set(
        tomllib.loads((CHECKOUT / "pyproject.toml").read_text("utf-8"))["tool"][
            "setuptools"
        ]["packages"]
    )
    source, training = CHECKOUT / "src", CHECKOUT / "training"
    found = {
        ".".join(p.parent.relative_to(source).parts)
        for p in source.rglob("__init__.py")
    }
    found |= {
        ".".join(("napari_msamil", "training", *p.parent.relative_to(training).parts))
        for p in training.rglob("__init__.py")
    }
    assert found == listed


def test_public_names_resolve() -> None:
    import napari_msamil

    for name in napari_msamil.__all__:
        assert getattr(napari_msamil, name) is not None


def test_unknown_public_name_is_an_attribute_error() -> None:
    import napari_msamil

    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = napari_msamil.nonsense
