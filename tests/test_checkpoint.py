from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import load_file, save_file

from napari_msamil.checkpoint import (
    load_checkpoint,
    read_header,
    resolve_model,
    save_checkpoint,
    selftest,
)
from napari_msamil.config import (
    AggregatorSpec,
    EncoderSpec,
    ModelConfig,
    PatchSpec,
    ScaleSpec,
    SegmenterSpec,
)
from napari_msamil.errors import CheckpointError
from napari_msamil.models import build_model
from napari_msamil.models.reference import (
    reference_logits,
    reference_pixels,
    reference_places,
)

if TYPE_CHECKING:
    from napari_msamil.models.msamil import MsamilModel

REFERENCE = Path(__file__).parent / "reference"


def tiny_config() -> ModelConfig:
    """The smallest model that has every part of the flow but a segmenter."""
    scales = tuple(
        ScaleSpec(name=n, mpp=m, size_px=32)
        for n, m in (("20x", 0.5), ("10x", 1.0), ("5x", 2.0))
    )
    return ModelConfig(
        name="tiny",
        classes=("normal", "tumour", "other"),
        patches=PatchSpec(scales=scales),
        encoder=EncoderSpec(
            backbone="test_efficientnet", dim=16, layers=1, heads=2, ffn=16, grid=1
        ),
        aggregator=AggregatorSpec(
            in_dim=16, args={"heads": 2, "rank": 4, "mlp_dim": 16, "queries": 3}
        ),
    )


@pytest.fixture
def model() -> MsamilModel:
    torch.manual_seed(5)
    return build_model(tiny_config()).eval()


@pytest.fixture
def saved(model: MsamilModel, tmp_path: Path) -> Path:
    return save_checkpoint(
        tmp_path / "tiny.safetensors",
        model,
        {"recipe": "none", "metrics": {"auc": 0.5}},
    )


def rewrite(path: Path, **changes: str | None) -> None:
    """Change or drop header entries of a checkpoint, its weights untouched."""
    raw = path.read_bytes()
    size = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8 : 8 + size])
    for key, value in changes.items():
        name = key.replace("__", ".")
        if value is None:
            del header["__metadata__"][name]
        else:
            header["__metadata__"][name] = value
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + size :])


def test_a_model_comes_back_as_it_was_saved(model: MsamilModel, saved: Path) -> None:
    loaded = load_checkpoint(saved)
    assert loaded.config == model.config
    assert not loaded.model.training
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], value), name
    assert reference_logits(loaded.model) == reference_logits(model)


def test_header_is_read_with_provenance_versions_and_size(
    model: MsamilModel, saved: Path
) -> None:
    header = read_header(saved)
    assert header.format_version == 1  # only ensembles need format 2
    assert header.config == model.config
    assert header.provenance["recipe"] == "none"
    assert header.provenance["metrics"] == {"auc": 0.5}
    assert header.provenance["software"]["torch"] == torch.__version__.split("+")[0]
    assert header.provenance["reference"]["logits"] == reference_logits(model)
    assert header.parameters == sum(v.numel() for v in model.state_dict().values())


def test_header_is_read_without_torch(saved: Path) -> None:
    code = (
        "import sys; from napari_msamil.checkpoint import read_header; "
        f"print(read_header({str(saved)!r}).config.name); "
        "assert not {'torch', 'timm', 'napari'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "tiny", done.stderr


def test_sha256_is_that_of_the_file(saved: Path) -> None:
    import hashlib

    assert (
        load_checkpoint(saved).sha256 == hashlib.sha256(saved.read_bytes()).hexdigest()
    )


def test_loading_leaves_the_callers_random_numbers_alone(saved: Path) -> None:
    before = torch.get_rng_state()
    load_checkpoint(saved)
    assert torch.equal(torch.get_rng_state(), before)


def test_half_files_are_smaller_and_keep_their_recorded_logits(
    model: MsamilModel, saved: Path, tmp_path: Path
) -> None:
    half = save_checkpoint(tmp_path / "half.safetensors", model, half=True)
    assert half.stat().st_size < 0.7 * saved.stat().st_size
    loaded = load_checkpoint(half)
    assert all(p.dtype == torch.float32 for p in loaded.model.parameters())
    assert selftest(loaded).max_abs_diff < 1e-6
    full = torch.tensor(reference_logits(model))
    torch.testing.assert_close(
        torch.tensor(selftest(loaded).found), full, atol=0.05, rtol=0.05
    )


def test_selftest_finds_a_changed_weight(saved: Path) -> None:
    loaded = load_checkpoint(saved)
    assert selftest(loaded).ok
    with torch.no_grad():
        loaded.model.aggregator.classifier.bias[0] += 0.01
    result = selftest(loaded)
    assert not result.ok
    assert result.max_abs_diff == pytest.approx(0.01, abs=1e-5)


def test_selftest_without_recorded_logits_says_so(saved: Path) -> None:
    rewrite(saved, msamil__provenance="{}")
    with pytest.raises(CheckpointError, match="no recorded logits"):
        selftest(load_checkpoint(saved))


def test_the_reference_input_never_changes() -> None:
    """Recorded logits of published files depend on it."""
    pixels = reference_pixels(32)
    coords, scale = reference_places(PatchSpec())
    assert pixels.shape == (7, 3, 32, 32)
    assert int(pixels.sum(dtype="int64")) == 3_069_880
    assert pixels[2, 1, 3, 5:9].tolist() == [203, 201, 199, 197]
    assert coords[4].tolist() == [0.5, 0.25]
    assert scale.tolist() == [2, 1, 1, 1, 0, 0, 0]


def test_the_file_of_format_1_loads_for_ever_and_gives_its_golden_logits() -> None:
    loaded = load_checkpoint(REFERENCE / "tiny-v1.safetensors")
    golden = json.loads((REFERENCE / "tiny-v1.json").read_text())
    assert list(loaded.config.classes) == golden["classes"]
    found = reference_logits(loaded.model)
    assert found == pytest.approx(golden["logits"], abs=1e-4), (
        f"golden {golden['logits']}, here {found}"
    )
    assert selftest(loaded).ok


def test_saving_over_a_file_leaves_no_part_behind(
    model: MsamilModel, saved: Path
) -> None:
    save_checkpoint(saved, model)
    assert [p.name for p in saved.parent.iterdir()] == ["tiny.safetensors"]


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX permissions")
def test_a_saved_file_is_as_readable_as_any_other(saved: Path) -> None:
    other = saved.with_name("other")
    other.touch()
    assert saved.stat().st_mode == other.stat().st_mode


def test_a_failed_save_keeps_the_old_file(
    model: MsamilModel, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = saved.read_bytes()

    def full_disk(path: Path, data: bytes) -> None:
        with path.open("wb") as file:
            file.write(data[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(CheckpointError, match="No space left"):
        save_checkpoint(saved, model)
    assert saved.read_bytes() == before
    assert [p.name for p in saved.parent.iterdir()] == ["tiny.safetensors"]


def test_a_checkpoint_has_its_suffix(model: MsamilModel, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="safetensors"):
        save_checkpoint(tmp_path / "model.pt", model)


def test_a_newer_format_asks_for_an_update(saved: Path) -> None:
    rewrite(saved, msamil__format_version="3")
    with pytest.raises(
        CheckpointError, match=r"format 3; this version reads up to 2\. Update"
    ):
        load_checkpoint(saved)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"surprise": 1}, "surprise"),
        ({"classes": ["one"]}, "two classes"),
        ({"aggregator": {"name": "iaam", "in_dim": 99}}, "encoder gives 16"),
    ],
)
def test_a_configuration_that_is_not_understood_names_the_place(
    model: MsamilModel, saved: Path, change: dict[str, object], says: str
) -> None:
    config = {**json.loads(model.config.model_dump_json()), **change}
    rewrite(saved, msamil__config=json.dumps(config))
    with pytest.raises(CheckpointError, match=says):
        read_header(saved)


def test_wrong_arguments_of_the_aggregator_are_an_error_about_this_file(
    model: MsamilModel, saved: Path
) -> None:
    config = json.loads(model.config.model_dump_json())
    config["aggregator"]["args"]["queries_"] = 3
    rewrite(saved, msamil__config=json.dumps(config))
    with pytest.raises(CheckpointError, match=r"tiny\.safetensors.*queries_"):
        load_checkpoint(saved)


def test_weights_without_a_configuration_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "plain.safetensors"
    save_file({"w": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match="no msamil configuration"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (
            lambda s: s.pop("aggregator.classifier.bias"),
            r"lacks aggregator\.classifier\.bias",
        ),
        (
            lambda s: s.update({"aggregator.extra": torch.zeros(1)}),
            r"too much: aggregator\.extra",
        ),
        (
            lambda s: s.update({"aggregator.classifier.bias": torch.zeros(5)}),
            r"aggregator\.classifier\.bias is \(5,\) instead of \(3,\)",
        ),
    ],
)
def test_weights_that_do_not_fit_exactly_are_refused(
    saved: Path, edit: object, says: str
) -> None:
    from safetensors import safe_open

    with safe_open(saved, framework="pt") as file:
        metadata = file.metadata()
    state = load_file(saved)
    edit(state)
    save_file(state, saved, metadata=metadata)
    with pytest.raises(CheckpointError, match=says):
        load_checkpoint(saved)


@pytest.mark.parametrize(
    "name", ["state.pt", "model.pth", "model.ckpt", "renamed.safetensors"]
)
def test_pickles_are_never_loaded_and_the_remedy_is_named(
    tmp_path: Path, name: str
) -> None:
    path = tmp_path / name
    torch.save({"w": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match="msamil-train publish"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"\xff" * 100, struct.pack("<Q", 10**15) + b"{}"]
)
def test_damaged_files_give_one_sentence(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"bad\.safetensors is damaged"):
        read_header(path)


def test_a_truncated_file_is_refused(saved: Path) -> None:
    os.truncate(saved, saved.stat().st_size - 100)
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(saved)


@pytest.mark.parametrize("key", ["msamil__provenance", "msamil__config"])
def test_a_header_that_is_no_json_is_damaged(saved: Path, key: str) -> None:
    rewrite(saved, **{key: "{broken"})
    with pytest.raises(CheckpointError, match=r"tiny\.safetensors"):
        read_header(saved)


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no model file"):
        resolve_model(tmp_path / "none.safetensors")
    with pytest.raises(CheckpointError, match="is a folder"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("ref", ["hf://owner", "hf://a/b/c", "hf://a/b@", "hf:///b"])
def test_malformed_hub_references_are_refused(ref: str) -> None:
    with pytest.raises(CheckpointError, match="not a hub reference"):
        resolve_model(ref)


def test_an_unreachable_hub_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("napari_msamil.hub._hub_is_known", lambda: False)
    with pytest.raises(CheckpointError, match="hub cannot be reached"):
        resolve_model("hf://owner/name@v1")


def test_a_hub_model_in_the_cache_needs_no_network(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache has the layout of huggingface_hub: a snapshot folder per revision."""
    root = Path(os.environ["MSAMIL_CACHE"]) / "hub" / "models--owner--name"
    commit = "0" * 40
    (root / "snapshots" / commit).mkdir(parents=True)
    (root / "refs").mkdir()
    (root / "refs" / "v1").write_text(commit)
    (root / "snapshots" / commit / "model.safetensors").write_bytes(saved.read_bytes())
    monkeypatch.setattr("napari_msamil.hub._hub_is_known", lambda: False)
    assert load_checkpoint("hf://owner/name@v1").config.name == "tiny"


def test_a_segmenter_travels_with_the_model(tmp_path: Path) -> None:
    pytest.importorskip("napari_msamil.models.segmenter")
    spec = SegmenterSpec(
        encoder="tu-lcnet_050", decoder_channels=(16, 16, 8, 8, 8), size_px=64
    )
    model = build_model(tiny_config().model_copy(update={"segmenter": spec}))
    path = save_checkpoint(tmp_path / "with.safetensors", model)
    loaded = load_checkpoint(path)
    assert loaded.model.segmenter is not None
    assert any(k.startswith("segmenter.") for k in load_file(path))


def test_every_aggregator_travels(tmp_path: Path) -> None:
    from napari_msamil.models import AGGREGATORS

    args = {"transmil": {"hidden": 16, "heads": 2}, "mambamil": {"hidden": 8}}
    for name in AGGREGATORS:
        spec = AggregatorSpec(name=name, in_dim=16, args=args.get(name, {}))
        model = build_model(tiny_config().model_copy(update={"aggregator": spec}))
        loaded = load_checkpoint(
            save_checkpoint(tmp_path / f"{name}.safetensors", model)
        )
        assert selftest(loaded).max_abs_diff == 0, name
