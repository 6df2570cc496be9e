"""Adapters against small folders laid out as the data sets are really distributed, dirty corners included."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from PIL import Image

from napari_msamil.annotations import read_mask
from napari_msamil.errors import CohortError
from training.cli import main
from training.cohort import import_cohort, read_cohort, write_cohort
from training.datasets import bcnb, camelyon16, clam, digestpath, table, tcga, ubc_ocean
from training.datasets.imported import ImportOptions
from training.splits import make_splits
from training.synth_plan import SynthSpec, plan_rows


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def text(path, content, encoding="utf-8"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode(encoding))


@pytest.fixture
def ubc(tmp_path):
    """Windows line ends, a number made of an identifier, TMA cores, few masks."""
    touch(
        tmp_path,
        *(f"train_images/{n}.png" for n in (4, 66, 91, 1020)),
        "train_thumbnails/4_thumbnail.png",
    )
    Image.fromarray(
        np.dstack([np.full((5, 7), 255), np.zeros((5, 7)), np.zeros((5, 7))]).astype(
            np.uint8
        )
    ).save(tmp_path / "66.png")
    touch(tmp_path, "masks/66.png")
    text(
        tmp_path / "train.csv",
        "image_id,label,image_width,image_height,is_tma\r\n"
        "4.0,HGSC,23785,20008,False\r\n66,LGSC,48871,48195,FALSE\r\n91,HGSC,3388,3388,True\r\n1020,CC,30000,20000,false\r\n",
        "utf-8-sig",
    )
    return tmp_path


def test_ubc_ocean_leaves_out_tma_cores_and_lives_with_missing_masks(ubc):
    found = ubc_ocean.read(ubc)
    assert found.problems == []
    assert [(r.slide_id, r.label, r.mpp) for r in found.rows] == [
        ("4", "HGSC", 0.5),
        ("66", "LGSC", 0.5),
        ("1020", "CC", 0.5),
    ]
    assert [r.mask is not None for r in found.rows] == [False, True, False]
    assert found.notes[:2] == [
        "1 tissue microarray cores were left out (--keep-all keeps them)",
        "2 of 3 slides have no mask",
    ]
    cores = ubc_ocean.read(ubc, ImportOptions(keep_all=True)).rows
    assert [r.mpp for r in cores if r.slide_id == "91"] == [0.25]


def test_ubc_ocean_lists_all_problems_with_lines(ubc):
    text(
        ubc / "train.csv",
        "image_id,label,is_tma\n4,HGSC,False\n5,Serous,False\n6,CC,False\n4,CC,False\n",
    )
    problems = ubc_ocean.read(ubc).problems
    assert (
        problems[0]
        == "line 3: unknown label 'Serous' (known: CC, EC, HGSC, LGSC, MC, Other)"
    )
    assert "line 4: no image" in problems[2]
    assert "slide 4 occurs twice" in problems[-1]


@pytest.fixture
def biopsies(tmp_path):
    outline = {
        "positive": [
            {"name": "Annotation 0", "vertices": [[10, 10], [60, 10], [60, 40]]}
        ],
        "negative": [],
    }
    for number in (1, 2, 3):
        touch(tmp_path, f"WSIs/{number}.jpg")
    for number in (1, 3):
        text(tmp_path / f"WSIs/{number}.json", json.dumps(outline))
    text(
        tmp_path / "patient-clinical-data.csv",
        "Patient ID,Age(years),ER,ALN status\r\n1.0,55,Positive,N0\r\n2,61,Negative,N+(1-2)\r\n3,47,Positive,N+(>2)\r\n",
        "utf-8-sig",
    )
    text(tmp_path / "dataset-splitting/train_id.txt", "1\r\n2\r\n")
    text(tmp_path / "dataset-splitting/test_id.txt", "3\n")
    return tmp_path


def test_bcnb_has_two_classes_outlines_and_the_official_parts(biopsies):
    found = bcnb.read(biopsies)
    assert found.problems == []
    assert [(r.slide_id, r.label, r.split) for r in found.rows] == [
        ("1", "N0", "train"),
        ("2", "N+", "train"),
        ("3", "N+", "test"),
    ]
    assert found.rows[1].mask is None
    assert read_mask(found.rows[0].mask, (100, 80), (40, 50)).fraction == pytest.approx(
        0.5 * 50 * 30 / 8000, rel=0.15
    )
    assert any("no resolution" in note for note in found.notes)
    assert bcnb.read(biopsies, ImportOptions(mpp=0.25)).rows[0].mpp == 0.25


def test_bcnb_asks_for_csv_where_there_is_only_excel(biopsies):
    (biopsies / "patient-clinical-data.csv").rename(
        biopsies / "patient-clinical-data.xlsx"
    )
    with pytest.raises(CohortError, match=r"is an Excel file\. Save it as CSV"):
        bcnb.read(biopsies)


def test_bcnb_names_unknown_status_and_missing_slides(biopsies):
    text(
        biopsies / "patient-clinical-data.csv",
        "Patient ID,ALN status\n1,unknown\n,N0\n9,N0\n",
    )
    problems = bcnb.read(biopsies).problems
    assert [p.split(":")[0] for p in problems] == ["line 2", "line 3", "line 4"]
    assert "unknown ALN status 'unknown'" in problems[0]


POSITIVE = "18-09926A_2019-05-08 00_06_12-lv1-33893-7060-5169-6277"


@pytest.fixture
def colonoscopies(tmp_path):
    touch(
        tmp_path,
        f"tissue-train-pos-v1/{POSITIVE}.jpg",
        f"tissue-train-pos-v1/{POSITIVE}_mask.jpg",
        "tissue-train-neg/18-09926B_2019-05-08 01_06_12-lv1-1-2-3-4.jpg",
        "tissue-train-neg/2018_64982_1-1_2019-02-25 21_35_42-lv1-33489-10897-4457-4872.jpg",
        "tissue-train-neg/2018_64982_1-2_2019-02-25 21_40_42-lv1-9-9-9-9.jpg",
        "tissue-train-neg/D20180043301_2019-05-21 16_47_43-lv1-39256-13756-7216-5384.jpg",
    )
    return tmp_path


def test_digestpath_pairs_masks_and_keeps_blocks_of_one_case_together(colonoscopies):
    found = digestpath.read(colonoscopies)
    assert found.problems == []
    positive = next(r for r in found.rows if r.label == "malignant")
    assert positive.mask is not None
    assert positive.mask.name == f"{POSITIVE}_mask.jpg"
    assert sorted({r.patient_id for r in found.rows}) == [
        "18-09926",
        "2018_64982",
        "D20180043301",
    ]
    assert len(found.rows) == 5
    assert any(
        "1 patients have slides of several classes (18-09926)" in note
        for note in found.notes
    )


def test_digestpath_names_missing_masks_and_a_wrong_folder(colonoscopies, tmp_path):
    (colonoscopies / f"tissue-train-pos-v1/{POSITIVE}_mask.jpg").unlink()
    assert (
        f"no mask {POSITIVE}_mask.jpg beside"
        in digestpath.read(colonoscopies).problems[0]
    )
    (tmp_path / "empty").mkdir()
    assert len(digestpath.read(tmp_path / "empty").problems) == 2


@pytest.mark.parametrize("flat", [False, True])
def test_camelyon16_leaves_out_two_slides_and_keeps_the_official_parts(tmp_path, flat):
    places = (
        ("images", "images", "images", "annotations")
        if flat
        else (
            "training/normal",
            "training/tumor",
            "testing/images",
            "training/lesion_annotations",
        )
    )
    touch(
        tmp_path,
        *(f"{places[0]}/normal_{n:03d}.tif" for n in (1, 86)),
        *(f"{places[1]}/tumor_{n:03d}.tif" for n in (1, 111)),
        *(f"{places[2]}/test_{n:03d}.tif" for n in (1, 2, 49, 114)),
        *(f"{places[3]}/tumor_{n:03d}.xml" for n in (1, 111)),
        f"{places[3]}/test_001.xml",
        f"{places[3]}/Test_114.xml",
        "testing/masks/test_001_mask.tif",
    )
    text(
        tmp_path / "testing/reference.csv",
        "test_001,Tumor,IDC,Macro\r\ntest_002,Normal,None,None\r\ntest_049,Tumor,IDC,Micro\r\ntest_114,Tumor,IDC,Macro\r\n",
    )
    found = camelyon16.read(tmp_path)
    assert found.problems == []
    assert {r.slide_id: (r.label, r.split) for r in found.rows} == {
        "normal_001": ("normal", "train"),
        "tumor_001": ("tumor", "train"),
        "tumor_111": ("tumor", "train"),
        "test_001": ("tumor", "test"),
        "test_002": ("normal", "test"),
        "test_114": ("tumor", "test"),
    }
    assert all((r.mask is not None) == (r.label == "tumor") for r in found.rows)
    assert [n.split(" ")[0] for n in found.notes] == [
        "normal_086",
        "test_049",
        "test_114",
    ] or len(found.notes) == 3
    assert len(camelyon16.read(tmp_path, ImportOptions(keep_all=True)).rows) == 8


def test_camelyon16_names_test_slides_without_reference(tmp_path):
    touch(tmp_path, "testing/images/test_005.tif", "training/tumor/tumor_009.tif")
    problems = camelyon16.read(tmp_path).problems
    assert problems == [
        "test_005.tif has no line in reference.csv",
        "no outline tumor_009.xml for tumor_009.tif",
    ]


BARCODES = [
    "TCGA-05-4244-01Z-00-DX1.d4ff32cd-38cf-40ea-8213-45c2b100ac01",
    "TCGA-05-4244-01Z-00-DX2.aaaaaaaa-38cf-40ea-8213-45c2b100ac01",
    "TCGA-05-4244-01A-01-TS1.bbbbbbbb-38cf-40ea-8213-45c2b100ac01",
    "TCGA-18-3406-01Z-00-DX1.cccccccc-38cf-40ea-8213-45c2b100ac01",
    "TCGA-18-3406-11A-01-DX1.dddddddd-38cf-40ea-8213-45c2b100ac01",
]


def test_tcga_reads_a_sample_sheet_and_takes_the_patient_from_the_barcode(tmp_path):
    lines = [
        "File ID\tFile Name\tData Category\tData Type\tProject ID\tCase ID\tSample ID\tSample Type"
    ]
    for i, name in enumerate(BARCODES):
        project = "TCGA-LUAD" if "-05-" in name else "TCGA-LUSC"
        lines.append(
            f"id{i}\t{name}.svs\tBiospecimen\tSlide Image\t{project}\t{name[:12]}\t{name[:16]}\tPrimary Tumor"
        )
        touch(tmp_path, f"id{i}/{name}.svs", f"id{i}/logs/{name}.svs.parcel")
    text(tmp_path / "gdc_sample_sheet.2025-11-01.tsv", "\r\n".join(lines) + "\r\n")
    found = tcga.read(tmp_path)
    assert found.problems == []
    assert [(r.patient_id, r.label) for r in found.rows] == [
        ("TCGA-05-4244", "LUAD")
    ] * 2 + [("TCGA-18-3406", "LUSC")]
    assert found.notes == [
        "1 frozen sections were left out (--keep-all keeps them)",
        "1 slides of normal tissue were left out (--keep-all keeps them)",
    ]


def test_tcga_reads_a_manifest_with_labels_and_names_unfinished_downloads(tmp_path):
    lines = [
        "id\tfilename\tmd5\tsize\tstate",
        *(f"id{i}\t{n}.svs\tabc\t12\treleased" for i, n in enumerate(BARCODES[:4])),
        "id9\tnotes.txt\tabc\t1\treleased",
    ]
    text(tmp_path / "gdc_manifest_20251101.txt", "\n".join(lines) + "\n")
    text(tmp_path / "labels.csv", "case_id,label\nTCGA-05-4244,LUAD\n")
    touch(
        tmp_path,
        f"id0/{BARCODES[0]}.svs",
        f"id1/{BARCODES[1]}.svs.partial",
        f"{BARCODES[3]}.svs",
    )
    found = tcga.read(tmp_path, ImportOptions(labels=tmp_path / "labels.csv"))
    assert [r.slide_id for r in found.rows] == [BARCODES[0], BARCODES[3]]
    assert found.problems == [
        f"line 3: {BARCODES[1]}.svs is not downloaded completely (a .partial file is there)",
        f"line 5: no label for TCGA-18-3406 in {tmp_path / 'labels.csv'}; add it, or leave the slide out of the table",
        "line 6: 'notes.txt' has no TCGA barcode",
    ]


def toy_cohort(tmp_path, slides=40):
    rows = plan_rows(
        SynthSpec(
            slides=slides,
            classes=("normal", "glandular-smooth"),
            slides_per_patient=(1, 2),
        )
    )
    touch(tmp_path, *(r["path"] for r in rows))
    with (tmp_path / "cohort.csv").open("w", newline="") as file:
        writer = csv.DictWriter(
            file, ("slide_id", "path", "patient_id", "label"), extrasaction="ignore"
        )
        writer.writeheader()
        writer.writerows(rows)
    return read_cohort(tmp_path / "cohort.csv")


def test_clam_tables_survive_export_and_import(tmp_path):
    cohort = toy_cohort(tmp_path)
    splits = make_splits(cohort, 3, seed=2)
    written = clam.write(tmp_path / "clam", cohort, splits)
    assert len(written) == 10
    again = clam.read_splits(tmp_path / "clam", cohort)
    assert again.folds == splits.folds
    with (tmp_path / "clam" / "splits_1_bool.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert all(
        sorted([r["train"], r["val"], r["test"]]) == ["False", "False", "True"]
        for r in rows
    )
    assert len(rows) == len(cohort)
    found = clam.read(
        tmp_path / "slides", ImportOptions(table=tmp_path / "clam" / "dataset.csv")
    )
    assert {(r.slide_id, r.patient_id, r.label) for r in found.rows} == {
        (r.slide_id, r.patient_id, r.label) for r in cohort.rows
    }


def test_clam_names_are_read_with_suffixes_numbers_and_empty_cells(tmp_path):
    touch(tmp_path, "12.svs", "b.svs", "c.svs")
    text(
        tmp_path / "dataset.csv",
        "case_id,slide_id,label\np1,12.0,x\np2,b.svs,y\np3,c,y\n",
    )
    found = clam.read(tmp_path)
    assert [r.slide_id for r in found.rows] == ["12", "b", "c"]
    cohort = read_cohort(write_cohort(tmp_path / "cohort.csv", found.rows))
    text(
        tmp_path / "splits" / "splits_0.csv",
        ",train,val,test\n0,12.0,b.svs,c\n1,,nan,\n",
    )
    text(tmp_path / "splits" / "splits_1.csv", ",train,val,test\n0,b,c,12.0\n")
    text(tmp_path / "splits" / "splits_2.csv", ",train,val,test\n0,c.svs,12,b\n")
    assert clam.read_splits(tmp_path / "splits", cohort).folds == (
        {"train": ("12",), "val": ("b",), "test": ("c",)},
        {"train": ("b",), "val": ("c",), "test": ("12",)},
        {"train": ("c",), "val": ("12",), "test": ("b",)},
    )
    text(tmp_path / "splits" / "splits_0.csv", ",train,val,test\n0,zz,b,c\n")
    with pytest.raises(CohortError, match=r"name 1 slides .* for example zz"):
        clam.read_splits(tmp_path / "splits", cohort)


def test_any_table_is_matched_to_slides_in_a_folder(tmp_path):
    touch(tmp_path, "deep/a1.svs", "a2.ndpi", "7.tiff", "twice/b.svs", "b.tif")
    text(
        tmp_path / "my.csv",
        "Filename;Case ID;Diagnosis\na1.svs;3.0;x\nC:\\scans\\a2.ndpi;4;y\n7.0;5;y\nb;6;x\nghost;6;x\n",
    )
    found = table.read(tmp_path, ImportOptions(table=tmp_path / "my.csv"))
    assert [(r.slide_id, r.patient_id, r.label) for r in found.rows] == [
        ("a1", "3", "x"),
        ("a2", "4", "y"),
        ("7", "5", "y"),
    ]
    assert [p.split(" named")[0] for p in found.problems] == [
        "line 5: 2 slides",
        "line 6: no slide",
    ]
    text(tmp_path / "bad.csv", "a,b\n1,2\n")
    with pytest.raises(CohortError, match="no column for slide and label"):
        table.read(tmp_path, ImportOptions(table=tmp_path / "bad.csv"))


def test_nothing_is_written_while_there_are_problems(tmp_path):
    touch(tmp_path, "a.svs")
    text(tmp_path / "labels.csv", "slide_id,patient_id,label\na,1,x\nb,2,y\n")
    with pytest.raises(CohortError, match=r"line 3: no slide named 'b'"):
        import_cohort("table", tmp_path, ImportOptions(), tmp_path / "cohort.csv")
    assert not (tmp_path / "cohort.csv").exists()


def test_the_command_imports_splits_and_exports(ubc, capsys):
    lines = [
        "image_id,label,is_tma",
        *(f"{i},{'HGSC' if i % 2 else 'CC'},False" for i in range(1, 13)),
    ]
    touch(ubc, *(f"train_images/{i}.png" for i in range(1, 13)))
    text(ubc / "train.csv", "\n".join(lines) + "\n")
    out = ubc / "work" / "cohort.csv"
    words = [
        "cohort",
        "--from",
        "ubc-ocean",
        "--folder",
        str(ubc),
        "-o",
        str(out),
        "--folds",
        "2",
        "--to-clam",
        str(ubc / "clam"),
    ]
    assert main(words) == 0
    shown = capsys.readouterr()
    assert "12 slides of 12 patients (CC 6, HGSC 6); 0 with a mask" in shown.out
    assert "note: the data set names no patients" in shown.err
    assert (ubc / "work" / "splits.json").exists()
    assert (ubc / "clam" / "splits_1.csv").exists()
    assert main(["cohort", str(out), "--open"]) == 1
    assert "12 problems" in capsys.readouterr().err
    assert main(["cohort"]) == 2


def test_clams_monte_carlo_splits_are_refused_with_the_reason(tmp_path):
    touch(tmp_path, "a.svs", "b.svs", "c.svs", "d.svs")
    text(
        tmp_path / "dataset.csv",
        "case_id,slide_id,label\np1,a,x\np2,b,y\np3,c,y\np4,d,x\n",
    )
    cohort = read_cohort(
        write_cohort(tmp_path / "cohort.csv", clam.read(tmp_path).rows)
    )
    text(tmp_path / "splits" / "splits_0.csv", ",train,val,test\n0,a,b,c\n1,,,d\n")
    text(tmp_path / "splits" / "splits_1.csv", ",train,val,test\n0,a,d,c\n1,b,,\n")
    with pytest.raises(
        CohortError,
        match=r"2 splits in .* test 1 slides several times and 2 never.*Monte-Carlo",
    ):
        clam.read_splits(tmp_path / "splits", cohort)


def test_a_row_without_label_is_told_with_its_line_before_anything_is_written(tmp_path):
    touch(tmp_path, "a.svs", "b.svs", "c.svs")
    text(
        tmp_path / "dataset.csv",
        "case_id,slide_id,label\np1,a,x\n\np2,b,\np3,c,y\n",
    )
    out = tmp_path / "new" / "cohort.csv"
    with pytest.raises(CohortError, match="1 problem:\n  line 4: no label"):
        import_cohort("clam", tmp_path, ImportOptions(), out)
    assert not out.exists()
    text(tmp_path / "dataset.csv", "case_id,slide_id,label\np1,a,x\np2,b,z\n")
    with pytest.raises(CohortError, match="line 3: unknown label 'z'"):
        import_cohort("clam", tmp_path, ImportOptions(), out, ("x", "y"))
    with pytest.raises(CohortError, match="line 2: mpp 900"):
        import_cohort("clam", tmp_path, ImportOptions(mpp=900), out)
    assert not out.exists()


def test_a_table_keeps_its_splits_folds_and_pixel_sizes(tmp_path):
    touch(tmp_path, "a.svs", "b.svs", "c.svs")
    text(
        tmp_path / "labels.csv",
        "slide_id;patient_id;label;Split;fold;mpp\na;1;x;Train;1.0;5e-1\nb;2;y;test;0;0,25\nc;3;y;;;\n",
    )
    out = tmp_path / "cohort.csv"
    import_cohort("table", tmp_path, ImportOptions(mpp=0.3), out)
    assert [(r.split, r.fold, r.mpp) for r in read_cohort(out).rows] == [
        ("train", 1, 0.5),
        ("test", 0, 0.25),
        ("", None, 0.3),
    ]


def test_splits_folds_and_pixel_sizes_that_are_none_are_told_with_their_lines(tmp_path):
    touch(tmp_path, "a.svs", "b.svs", "c.svs")
    text(
        tmp_path / "labels.csv",
        "slide_id;patient_id;label;split;fold;mpp\na;1;x;first;inf;0.5 um\nb;2;y;train;0;abc\nc;2;y;test;0;\n",
    )
    with pytest.raises(CohortError) as found:
        import_cohort("table", tmp_path, ImportOptions(), tmp_path / "cohort.csv")
    for part in (
        "line 2: split 'first' is not train",
        "line 2: fold 'inf' is no whole number",
        "line 2: mpp '0.5 um' is no plausible",
        "line 3: mpp 'abc' is no plausible",
        "patient 2 lies in several splits (test: line 4; train: line 3)",
    ):
        assert part in str(found.value)
    assert not (tmp_path / "cohort.csv").exists()


def test_an_import_into_another_folder_finds_its_slides(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    touch(tmp_path, "slides/a.png", "slides/b.png")
    text(tmp_path / "my.csv", "slide_id,patient_id,label\na,1,x\nb,2,y\n")
    words = ["cohort", "my.csv", "--folder", "slides", "-o", "out/cohort.csv"]
    assert main(words) == 0
    found = [r.path for r in read_cohort(tmp_path / "out" / "cohort.csv").rows]
    assert found == [tmp_path / "slides" / "a.png", tmp_path / "slides" / "b.png"]


def test_tcga_labels_of_a_table_are_never_filled_up_with_projects(tmp_path):
    lines = ["File ID\tFile Name\tProject ID"]
    for i in (0, 3):
        lines.append(f"id{i}\t{BARCODES[i]}.svs\tTCGA-COAD")
        touch(tmp_path, f"id{i}/{BARCODES[i]}.svs")
    text(tmp_path / "gdc_sample_sheet.tsv", "\n".join(lines) + "\n")
    labels = tmp_path / "labels.csv"
    text(labels, "case_id,label\nTCGA-05-4244,MSI\n")
    options = ImportOptions(labels=labels)
    assert tcga.read(tmp_path, options).problems == [
        f"line 3: no label for TCGA-18-3406 in {labels}; add it, or leave the slide out of the table"
    ]
    text(labels, "case_id,label\nTCGA-05-4244,MSI\nTCGA-05-4244,MSS\n")
    with pytest.raises(CohortError, match="line 3: TCGA-05-4244 is 'MSS' here"):
        tcga.read(tmp_path, options)
    text(labels, "patient,label\nTCGA-05-4244,MSI\n")
    with pytest.raises(CohortError, match="has no column case_id"):
        tcga.read(tmp_path, options)
