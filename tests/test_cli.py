"""The command line as a person uses it: exit codes, messages, files."""

from __future__ import annotations

import csv
import json
from typing import TYPE_CHECKING

import pytest

from napari_msamil import cli

if TYPE_CHECKING:
    from pathlib import Path


def test_no_command_is_a_wrong_call(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    assert "COMMAND" in capsys.readouterr().err


def test_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert "napari-msamil" in capsys.readouterr().out


def test_info_as_json_is_plain_json_on_stdout(
    painted_svs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["info", str(painted_svs), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["width"], document["height"]) == (1800, 1400)
    assert document["mpp"] == pytest.approx(0.5)
    assert document["mpp_source"] == "tag"


@pytest.mark.parametrize(
    ("asked", "shown"), [("auto", "direct"), ("openslide", "openslide")]
)
def test_info_shows_who_decodes_the_tiles(
    painted_svs: Path, capsys: pytest.CaptureFixture[str], asked: str, shown: str
) -> None:
    assert cli.main(["info", str(painted_svs), "--json", "--backend", asked]) == 0
    assert json.loads(capsys.readouterr().out)["backend"] == shown


def test_info_of_a_missing_file_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["info", str(tmp_path / "gone.svs")]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "gone.svs" in captured.err
    assert len(captured.err.strip().splitlines()) == 1


def test_model_info_names_classes_and_use(
    tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["model", "info", str(tiny_checkpoint)]) == 0
    text = capsys.readouterr().out
    assert "calm" in text
    assert "Not for diagnosis" in text


def test_selftest_of_a_checkpoint_passes(
    tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["selftest", str(tiny_checkpoint), "--device", "cpu"]) == 0
    assert capsys.readouterr().out.startswith("ok")


def test_mask_writes_geojson_and_says_that_tissue_was_used(
    painted_svs: Path,
    tiny_checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "mask.geojson"
    words = ["mask", str(painted_svs), "--model", str(tiny_checkpoint), "-o", str(out)]
    assert cli.main(words) == 0
    assert json.loads(out.read_text("utf-8"))["features"]
    assert "tissue" in capsys.readouterr().err


def test_one_bad_slide_does_not_stop_the_others(
    painted_svs: Path,
    tiny_checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bad = tmp_path / "notes.svs"
    bad.write_text("not a slide")
    out = tmp_path / "out"
    words = ["classify", str(bad), str(painted_svs), "--model", str(tiny_checkpoint)]
    assert cli.main([*words, "-o", str(out), "--device", "cpu"]) == 1
    with (out / "summary.csv").open(newline="", encoding="utf-8") as file:
        rows = {row["slide"]: row for row in csv.DictReader(file)}
    assert rows["painted slide"]["status"] == "done"
    assert "notes.svs" in rows["notes"]["error"]
    assert (out / "painted slide" / "result.json").is_file()
    assert not (out / "notes").exists()
    assert "notes.svs" in capsys.readouterr().err


def test_a_second_run_skips_what_is_finished(
    painted_svs: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    words = ["classify", str(painted_svs), "--model", str(tiny_checkpoint)]
    words += ["-o", str(tmp_path / "out"), "--device", "cpu"]
    assert cli.main(words) == 0
    written = (tmp_path / "out" / "painted slide" / "result.json").stat().st_mtime_ns
    assert cli.main(words) == 0
    again = (tmp_path / "out" / "painted slide" / "result.json").stat().st_mtime_ns
    assert again == written


def test_the_stored_command_repeats_the_result(
    painted_svs: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    first = tmp_path / "a"
    words = ["classify", str(painted_svs), "--model", str(tiny_checkpoint)]
    assert cli.main([*words, "-o", str(first), "--precision", "fp32"]) == 0
    document = json.loads((first / "painted slide" / "result.json").read_text("utf-8"))
    import shlex

    again = shlex.split(document["command"])[1:]
    again[again.index(str(first))] = str(tmp_path / "b")
    assert cli.main(again) == 0
    repeated = json.loads(
        (tmp_path / "b" / "painted slide" / "result.json").read_text("utf-8")
    )
    assert repeated["logits"] == document["logits"]


def test_unknown_device_is_a_wrong_call(
    painted_svs: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    words = ["classify", str(painted_svs), "--model", str(tiny_checkpoint)]
    assert cli.main([*words, "-o", str(tmp_path), "--device", "abacus"]) == 2


def test_view_without_a_display_names_the_other_way(
    painted_svs: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(cli, "has_display", lambda: False)
    assert cli.main(["view", str(painted_svs)]) == 2
    assert "msamil classify" in capsys.readouterr().err


def test_an_unexpected_error_keeps_its_trace(
    painted_svs: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("surprise")

    monkeypatch.setattr("napari_msamil.slide.open_slide", broken)
    assert cli.main(["info", str(painted_svs)]) == 1
    text = capsys.readouterr().err
    assert "surprise" in text
    assert "unexpected error" in text


def test_compiling_without_a_compiler_is_refused_before_any_slide_is_read(
    painted_svs: Path,
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def no_compiler(*_: object, **__: object) -> object:
        raise RuntimeError("No working C++ compiler found")

    monkeypatch.setattr("torch.compile", no_compiler)
    words = ["classify", str(painted_svs), "--model", str(tiny_checkpoint)]
    out = tmp_path / "out"
    assert cli.main([*words, "-o", str(out), "--device", "cpu", "--compile"]) == 2
    said = capsys.readouterr().err
    assert "Install a C++ compiler" in said
    assert "run without --compile" in said
    assert not out.exists()
