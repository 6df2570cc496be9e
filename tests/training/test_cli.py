"""The command line: lazy verbs, exit codes, help without torch."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from training.cli import VERBS, main

if TYPE_CHECKING:
    from pathlib import Path


def test_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert all(verb in text for verb in VERBS)


@pytest.mark.parametrize("verb", ["e2e", "extract", "publish", "run", "dino"])
def test_each_verb_explains_itself(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main([verb, "--help"])
    assert caught.value.code == 0
    assert f"msamil-train {verb}" in capsys.readouterr().out


def test_help_loads_no_torch() -> None:
    code = (
        "import sys\nfrom training.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "assert 'torch' not in sys.modules, 'torch was imported'\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("words", [[], ["nonsense"], ["e2e"], ["e2e", "--bogus"]])
def test_a_wrong_call_ends_with_2(words: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2


def test_a_wrong_recipe_ends_with_2_and_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(
        ["e2e", "--cohort", "c.csv", "-o", str(tmp_path / "o"), "--set", "e2e.epochz=3"]
    )
    assert code == 2
    assert "did you mean 'epochs'" in capsys.readouterr().err


def test_a_missing_cohort_ends_with_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(
        ["e2e", "--cohort", str(tmp_path / "no.csv"), "-o", str(tmp_path / "o")]
    )
    assert code == 1
    assert "no.csv" in capsys.readouterr().err


def test_a_recipe_without_stages_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text("[e2e]\nepochs = 1\n", encoding="utf-8")
    assert main(["run", "--config", str(recipe), "-o", str(tmp_path)]) == 2
    assert "stages" in capsys.readouterr().err


def test_finished_stages_are_skipped_and_a_failing_one_ends_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text(
        "[[stages]]\nverb = 'synth'\nargs = '--no-such-argument'\nmakes = '{out}/made'\n"
        "[[stages]]\nverb = 'publish'\nargs = '{out}/absent -o {out}/m.safetensors'\nmakes = '{out}/m'\n",
        encoding="utf-8",
    )
    (tmp_path / "made").touch()
    assert main(["run", "--config", str(recipe), "-o", str(tmp_path)]) == 1
    err = capsys.readouterr().err
    assert "[1/2] synth: done already" in err
    assert "absent" in err


def test_a_finished_stage_of_an_older_recipe_is_kept_and_said_to_be_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "r.toml"

    def run(slides: int) -> str:
        args = f"-o {{out}}/c --slides {slides} --size 90 80 --jobs 1"
        made = "{out}/c/cohort.csv"
        recipe.write_text(
            f"[[stages]]\nverb = 'synth'\nargs = '{args}'\nmakes = '{made}'\n"
        )
        assert main(["run", "--config", str(recipe), "-o", str(tmp_path / "o")]) == 0
        return capsys.readouterr().err

    run(2)
    assert run(2).rstrip().endswith("synth: done already")
    assert "done already, but with another --slides than now; delete" in run(3)
