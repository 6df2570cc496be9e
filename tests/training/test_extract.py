"""Extracted features are those that the plugin computes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from napari_msamil.checkpoint import load_checkpoint, save_checkpoint
from napari_msamil.models import build_model
from training.bags import load_bag
from training.cli import main

from .e2e_parts import tiny_config, write_cohort

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("extract")
    write_cohort(folder, "train,train,test")
    torch.manual_seed(1)
    save_checkpoint(folder / "m.safetensors", build_model(tiny_config()).eval())
    return folder


def _extract(work: Path, out: Path, *more: str) -> int:
    words = [
        "extract",
        "--cohort",
        str(work / "cohort.csv"),
        "--model",
        str(work / "m.safetensors"),
    ]
    return main(
        [*words, "-o", str(out), "--device", "cpu", "--precision", "fp32", *more]
    )


@pytest.mark.parametrize("suffix", ["pt", "h5", "zarr"])
def test_bags_hold_the_plugins_features_in_every_format(
    work: Path, tmp_path: Path, suffix: str
) -> None:
    from napari_msamil.pipeline import classify

    assert _extract(work, tmp_path, "--set", f"extract.format={suffix}") == 0
    bag = load_bag(tmp_path / f"s1.{suffix}")
    result = classify(
        work / "s1.tiff",
        load_checkpoint(work / "m.safetensors"),
        device="cpu",
        precision="fp32",
        cache=False,
    )
    assert np.array_equal(bag.coords_xy0.numpy(), result.grid.coords_xy0)
    assert np.array_equal(bag.scale.numpy(), result.grid.scale)
    assert np.allclose(bag.features.numpy(), result.features, atol=1e-6)
    assert bag.scale_names == ("20x", "10x", "5x")
    assert bag.mpp == pytest.approx(0.5)


def test_a_second_run_skips_finished_slides(work: Path, tmp_path: Path) -> None:
    assert _extract(work, tmp_path) == 0
    before = {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    for name in ("extracted.json", "made_with.json"):
        before.pop(name)
    assert sorted(before) == ["s0.pt", "s1.pt", "s2.pt"]
    assert _extract(work, tmp_path) == 0
    after = {p.name: p.stat().st_mtime_ns for p in tmp_path.glob("*.pt")}
    assert after == before


def test_bags_of_other_patches_or_models_are_not_mixed_with_those_that_are_there(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _extract(work, tmp_path) == 0
    (tmp_path / "s1.pt").unlink()
    assert _extract(work, tmp_path, "--set", "extract.patches=tissue") == 2
    assert "another [extract]" in capsys.readouterr().err
    torch.manual_seed(2)
    save_checkpoint(tmp_path / "n.safetensors", build_model(tiny_config()).eval())
    assert _extract(work, tmp_path, "--model", str(tmp_path / "n.safetensors")) == 2
    assert "another --model" in capsys.readouterr().err
    assert not (tmp_path / "s1.pt").exists()
    as_h5 = ("--set", "extract.patches=tissue", "--set", "extract.format=h5")
    assert _extract(work, tmp_path, *as_h5) == 0  # files of their own


def test_a_bag_of_another_pixel_size_is_made_anew_and_the_others_are_kept(
    work: Path, tmp_path: Path
) -> None:
    table = write_cohort(tmp_path, "train,train,test")
    bags = tmp_path / "bags"
    words = ["extract", "--cohort", str(table), "--model", str(work / "m.safetensors")]
    words += ["-o", str(bags), "--device", "cpu", "--set", "extract.patches=tissue"]

    def times() -> dict[str, int]:
        assert main(words) == 0
        return {p.name: p.stat().st_mtime_ns for p in bags.glob("*.pt")}

    first = times()
    lines = table.read_text().splitlines()
    lines[2] += "0.48"  # s1, the last column is mpp
    table.write_text("\n".join(lines) + "\n")
    second = times()
    assert {name for name in first if first[name] != second[name]} == {"s1.pt"}
    assert load_bag(bags / "s1.pt").mpp == pytest.approx(0.48)
    assert times() == second
    (tmp_path / "s1.tiff").write_bytes(b"not a slide")
    table.write_text(table.read_text().replace("0.48", "0.47"))
    assert main(words) == 1
    # nothing is trained on the bag of another pixel size
    assert sorted(p.name for p in bags.glob("*.pt")) == ["s0.pt", "s2.pt"]


def test_tissue_patches_are_more_than_lesion_patches(
    work: Path, tmp_path: Path
) -> None:
    assert _extract(work, tmp_path / "lesion") == 0
    assert _extract(work, tmp_path / "tissue", "--set", "extract.patches=tissue") == 0
    assert len(load_bag(tmp_path / "tissue" / "s0.pt")) >= len(
        load_bag(tmp_path / "lesion" / "s0.pt")
    )


def test_a_bad_slide_is_named_and_the_others_finish(
    tmp_path: Path, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_cohort(tmp_path, "train,train,test")
    (tmp_path / "s1.tiff").write_bytes(b"not a slide")
    words = [
        "extract",
        "--cohort",
        str(tmp_path / "cohort.csv"),
        "--model",
        str(work / "m.safetensors"),
    ]
    assert main([*words, "-o", str(tmp_path / "bags"), "--device", "cpu"]) == 1
    assert "s1" in capsys.readouterr().err
    assert sorted(p.stem for p in (tmp_path / "bags").glob("*.pt")) == ["s0", "s2"]


def test_masks_of_the_cohort_choose_patches_and_label_instances(
    work: Path, tmp_path: Path
) -> None:
    from PIL import Image

    table = write_cohort(tmp_path, "train")
    mask = np.zeros((72, 104), np.uint8)
    mask[:, :52] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    table.write_text(
        table.read_text().replace(",,train", ",mask.png,train"), encoding="utf-8"
    )
    words = [
        "extract",
        "--cohort",
        str(table),
        "--model",
        str(work / "m.safetensors"),
        "--device",
        "cpu",
    ]
    assert main([*words, "-o", str(tmp_path / "lesion")]) == 0
    assert (
        main([*words, "-o", str(tmp_path / "all"), "--set", "extract.patches=tissue"])
        == 0
    )
    lesion, everything = (load_bag(tmp_path / n / "s0.pt") for n in ("lesion", "all"))
    assert int((lesion.coords_xy0[:, 0] + 32).max()) <= 208
    assert lesion.instance_labels is not None
    assert bool(lesion.instance_labels.bool().all())
    assert everything.instance_labels is not None
    finest = everything.scale == 0
    left = everything.coords_xy0[finest, 0] + 16 < 208
    assert torch.equal(everything.instance_labels[finest].bool(), left)


def test_each_scale_can_have_an_encoder_of_its_own(work: Path, tmp_path: Path) -> None:
    """Three encoders: every patch has the feature its own scale's encoder gives it alone."""
    names = ("20x", "10x", "5x")
    for seed, name in enumerate(names):
        torch.manual_seed(seed)
        model = build_model(tiny_config()).eval()
        save_checkpoint(tmp_path / f"{name}.safetensors", model)
    words = ["extract", "--cohort", str(work / "cohort.csv"), "--device", "cpu"]
    words += ["--precision", "fp32", "--set", "extract.patches=tissue", "--model"]
    for name in names:
        alone = [*words, str(tmp_path / f"{name}.safetensors")]
        assert main([*alone, "-o", str(tmp_path / name)]) == 0
    pairs = [f"{name}={tmp_path / name}.safetensors" for name in reversed(names)]
    assert main([*words, *pairs, "-o", str(tmp_path / "all")]) == 0
    bag = load_bag(tmp_path / "all" / "s1.pt")
    assert bag.valid.all()
    for index, name in enumerate(names):
        wanted = load_bag(tmp_path / name / "s1.pt").features[bag.scale == index]
        assert len(wanted)
        found = bag.features[bag.scale == index]
        assert torch.allclose(found, wanted, atol=1e-5)
    for wrong in (pairs[:2], [*pairs[:2], pairs[0]], [str(tmp_path), *pairs[:2]]):
        assert main([*words, *wrong, "-o", str(tmp_path / "wrong")]) == 2
