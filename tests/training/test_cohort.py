"""Cohort tables: what is accepted, and how problems are told."""

from __future__ import annotations

import pytest

from napari_msamil.errors import CohortError
from training.cohort import read_cohort, write_cohort


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
