"""Cohort tables: what is accepted, and how problems are told."""

from __future__ import annotations

from pathlib import Path

import pytest

from napari_msamil.errors import CohortError
from training.cli import main
from training.cohort import CohortRow, read_cohort, write_cohort
from training.splits import read_splits


def write(
    tmp_path,
    text,
    name="cohort.csv",
    encoding="utf-8",
    slides=("a.tiff", "b.tiff", "m.png"),
):
    for slide in slides:
        (tmp_path / slide).touch()
    path = tmp_path / name
    path.write_bytes(text.encode(encoding))
    return path


def test_a_plain_table_is_read_with_absolute_paths(tmp_path):
    path = write(
        tmp_path,
        "slide_id,path,patient_id,label,mask,split,mpp\ns1,a.tiff,p1,x,m.png,train,0.5\ns2,b.tiff,p2,y,,test,\n",
    )
    cohort = read_cohort(path)
    first, second = cohort.rows
    assert (first.path, first.mask, first.mpp) == (
        (tmp_path / "a.tiff").resolve(),
        (tmp_path / "m.png").resolve(),
        0.5,
    )
    assert (second.mask, second.mpp, second.line) == (None, None, 3)
    assert cohort.classes == ("x", "y")
    assert cohort.labels(cohort.part("test")) == [1]


@pytest.mark.parametrize("mark", ["utf-8", "utf-8-sig"])
def test_windows_line_ends_byte_order_marks_semicolons_and_blank_lines_are_understood(
    tmp_path, mark
):
    text = "slide_id;path;patient_id;label;fold;mpp\r\n s1 ;a.tiff;p1;x;0.0;0,25\r\n\r\ns2;b.tiff;p2;y;1;\r\n"
    cohort = read_cohort(write(tmp_path, text, encoding=mark))
    assert [(r.slide_id, r.fold, r.mpp, r.line) for r in cohort.rows] == [
        ("s1", 0, 0.25, 2),
        ("s2", 1, None, 4),
    ]


def test_all_problems_are_listed_at_once_with_their_lines(tmp_path):
    text = (
        "slide_id,path,patient_id,label,mask,split,mpp\n"
        "s1,a.tiff,p1,x,,train,0.5\n"
        "s1,nowhere.tiff,p1,x,lost.png,test,900\n"
        "s3,b.tiff,,z,,later,wide\n"
    )
    with pytest.raises(CohortError) as found:
        read_cohort(write(tmp_path, text), classes=("x", "y"))
    message = str(found.value)
    for part in (
        "line 2: slide_id s1 occurs twice",
        "line 3: no slide at",
        "line 3: no mask at",
        "line 3: mpp '900' is no plausible",
        "line 4: no patient_id",
        "line 4: unknown label 'z' (known: x, y)",
        "line 4: split 'later'",
        "line 4: mpp 'wide'",
        "patient p1 lies in several splits (test: line 3; train: line 2)",
    ):
        assert part in message


def test_a_patient_in_two_folds_is_a_problem(tmp_path):
    text = "slide_id,path,patient_id,label,fold\ns1,a.tiff,p1,x,0\ns2,b.tiff,p1,y,1\n"
    with pytest.raises(CohortError, match="patient p1 lies in several folds"):
        read_cohort(write(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "no rows"),
        ("slide_id,path\ns1,a.tiff\n", "no column label, patient_id"),
        ("slide_id,path\n", "no rows"),
    ],
)
def test_a_table_that_is_none_is_named(tmp_path, text, part):
    with pytest.raises(CohortError, match=part):
        read_cohort(write(tmp_path, text))


def test_a_missing_or_foreign_file_is_named(tmp_path):
    with pytest.raises(CohortError, match="cannot be read"):
        read_cohort(tmp_path / "none.csv")
    (tmp_path / "excel.csv").write_bytes(b"PK\x03\x04\xff\xfe\x00")
    with pytest.raises(CohortError, match="cannot be read"):
        read_cohort(tmp_path / "excel.csv")


def test_labels_and_files_can_be_left_out_where_they_are_not_needed(tmp_path):
    path = write(tmp_path, "slide_id,path,patient_id\ns1,far.tiff,p1\n")
    assert read_cohort(path, need_labels=False, need_files=False).rows[0].label == ""


def test_windows_paths_are_found(tmp_path):
    (tmp_path / "sub").mkdir()
    path = write(
        tmp_path,
        "slide_id,path,patient_id,label\ns1,sub\\c.tiff,p1,x\n",
        slides=("sub/c.tiff",),
    )
    assert (
        read_cohort(path, classes=("x", "y")).rows[0].path
        == (tmp_path / "sub" / "c.tiff").resolve()
    )


def test_what_is_written_is_read_back(tmp_path):
    text = "slide_id,path,patient_id,label,mask,split,fold,mpp\ns1,a.tiff,p1,x,m.png,train,,0.5\ns2,b.tiff,p2,y,,test,1,\n"
    cohort = read_cohort(write(tmp_path, text))
    again = read_cohort(write_cohort(tmp_path / "again.csv", cohort.rows))
    assert again.rows == cohort.rows
    assert str(tmp_path) not in (tmp_path / "again.csv").read_text(encoding="utf-8")


def test_many_problems_are_counted_not_poured_out(tmp_path):
    lines = "".join(f"s{i},gone{i}.tiff,p{i},x\n" for i in range(90))
    with pytest.raises(CohortError, match=r"90 problems(.|\n)*and 50 more"):
        read_cohort(write(tmp_path, "slide_id,path,patient_id,label\n" + lines))


def test_one_patient_read_as_number_and_as_text_is_named(tmp_path):
    text = (
        "slide_id,path,patient_id,label\na,a.tiff,3,x\nb,b.tiff,3.0,y\nc,c.tiff,4.0,x\n"
    )
    (tmp_path / "c.csv").write_text(text)
    with pytest.raises(CohortError) as error:
        read_cohort(tmp_path / "c.csv", need_files=False)
    assert "1 problem" in str(error.value)
    assert "line 3: patient 3.0 and patient 3 look like one" in str(error.value)


@pytest.mark.parametrize("cell", ["inf", "nan", "two", "-1", "1.5"])
def test_a_fold_that_is_no_whole_number_is_a_problem_with_its_line(tmp_path, cell):
    text = f"slide_id,path,patient_id,label,fold\ns1,a.tiff,p1,x,1.0\ns2,b.tiff,p2,y,{cell}\n"
    with pytest.raises(CohortError, match=f"line 3: fold '{cell}' is no whole number"):
        read_cohort(write(tmp_path, text))


def test_slides_outside_of_the_tables_folder_are_found_from_anywhere(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "slides").mkdir()
    (tmp_path / "slides" / "s1.png").touch()
    rows = [CohortRow("s1", Path("slides/s1.png"), "p1", "x")]
    table = write_cohort(Path("out/cohort.csv"), rows)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    (found,) = read_cohort(tmp_path / table).rows
    assert found.path == tmp_path / "slides" / "s1.png"


def folds_table(tmp_path, folds):
    rows = ["slide_id,path,patient_id,label,fold"]
    for i, fold in enumerate(folds):
        (tmp_path / f"s{i}.png").touch()
        rows.append(f"s{i},s{i}.png,p{i},{'xy'[i % 2]},{fold}")
    return write(tmp_path, "\n".join(rows) + "\n")


@pytest.mark.parametrize("words", [["--folds"], ["--folds", "3"]])
def test_the_command_takes_the_folds_of_the_table(tmp_path, capsys, words):
    table = folds_table(tmp_path, [f"{1 + i // 2 % 3}.0" for i in range(18)])
    assert main(["cohort", str(table), *words]) == 0
    assert "those of the column fold" in capsys.readouterr().err
    fold_of = {r.slide_id: r.fold for r in read_cohort(table).rows}
    folds = read_splits(tmp_path / "splits.json").folds
    assert [{fold_of[n] for n in f["test"]} for f in folds] == [{1}, {2}, {3}]


def test_the_command_says_where_the_column_fold_is_not_used(tmp_path, capsys):
    table = folds_table(tmp_path, [i // 2 % 3 for i in range(18)])
    assert main(["cohort", str(table), "--folds", "2"]) == 2
    assert "has 3 folds, not 2" in capsys.readouterr().err
    table = folds_table(tmp_path, ["", *(i // 2 % 3 for i in range(1, 18))])
    assert main(["cohort", str(table), "--folds", "2"]) == 0
    assert "1 rows have no fold, so the column" in capsys.readouterr().err
    assert main(["cohort", str(table), "--folds"]) == 1
    assert "line 2: no fold" in capsys.readouterr().err
    table = folds_table(tmp_path, [""] * 18)
    assert main(["cohort", str(table), "--folds"]) == 2
    assert "--folds needs a number" in capsys.readouterr().err
    assert main(["cohort", str(table), "--folds", "0"]) == 1
    assert "0 folds: at least 2 are needed" in capsys.readouterr().err


def test_the_command_refuses_folds_without_validation(tmp_path, capsys):
    table = folds_table(tmp_path, [""] * 18)
    assert main(["cohort", str(table), "--folds", "2", "--val-share", "0"]) == 2
    assert "share of validation slides is 0" in capsys.readouterr().err
    assert not (tmp_path / "splits.json").exists()
