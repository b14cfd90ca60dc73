"""MIMIC-CXR: sections of reports beside the images of their study."""

import csv
import gzip
import io
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep import mimic_cxr
from m3ae.corpora.items import Drops
from m3ae.corpora.verification import verify
from m3ae.data.shards import Shards
from tests.data_prep.test_corpora import SMALL, dropped, save_image, texts_of
from tests.data_prep.test_question_parsers import (
    ALLOWED,
    CUTS,
    MANY,
    as_csv,
    check_items,
    damage,
    table,
)

SECTIONED = [
    ["study", "impression", "findings", "last_paragraph", "comparison"],
    ["s50000001", "No acute disease.", 'Clear lungs, "normal"\nheart size.', "", "None."],
    ["s50000002", "", "Small left effusion seen.", "Not this one here.", ""],
    ["s50000003", "", " ", "Lines are in place.", ""],
    ["s50000004", "Normal.", "", "", ""],
]
IMAGES = [  # dicom, study, subject, split, view
    ("a1-0", "50000001", "10000032", "train", "PA"),
    ("a2-0", "50000001", "10000032", "train", "LATERAL"),
    ("b1-0", "50000002", "10000032", "train", "AP"),
    ("c1-0", "50000003", "11000033", "train", ""),
    ("d1-0", "50000004", "12000034", "validate", "PA"),
    ("e1-0", "50000001", "10000032", "test", "PA"),
    ("f1-0", "50000009", "10000032", "train", "PA"),
]


def write_table(path: Path, rows: list) -> None:
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    data = text.getvalue().encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def write(raw: Path, ending: str = ".csv.gz", images: list = IMAGES) -> None:
    for k, (dicom, study, subject, _, _) in enumerate(images):
        save_image(raw / f"files/p{subject[:2]}/p{subject}/s{study}/{dicom}.jpg", k)
    write_table(raw / "mimic_cxr_sectioned.csv", SECTIONED)
    rows = [["dicom_id", "study_id", "subject_id", "split"], *(row[:4] for row in images)]
    write_table(raw / f"mimic-cxr-2.0.0-split{ending}", rows)
    rows = [["dicom_id", "ViewPosition", "Rows"], *((row[0], row[4], 9) for row in images)]
    write_table(raw / f"mimic-cxr-2.0.0-metadata{ending}", rows)


def arguments(raw: Path, *more: str, out: str = "out") -> list[str]:
    return ["--raw", str(raw), "--out", str(raw.parent / out), *SMALL, *more]


@pytest.mark.parametrize("ending", [".csv.gz", ".csv"])
def test_sections_of_a_study_beside_its_images(tmp_path, ending):
    """A report beside another study's image, a lost section, or an uncounted image."""
    write(tmp_path / "raw", ending)
    assert mimic_cxr.main(arguments(tmp_path / "raw", "--min-words", "1")) == 0
    splits = {name: Shards(tmp_path / "out" / name) for name in ("train", "valid", "test")}
    both = ['Clear lungs, "normal" heart size.', "No acute disease."]
    assert texts_of(splits["train"]) == {
        "a1-0": both,
        "a2-0": both,
        "b1-0": ["Small left effusion seen."],
    }
    assert texts_of(splits["valid"]) == {"d1-0": ["Normal."]}
    assert texts_of(splits["test"]) == {"e1-0": both}
    assert dropped(splits["train"]) == {
        "image: its study has none of the sections": 1,
        "image: its study has no row in mimic_cxr_sectioned": 1,
    }
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["corpus"]["train"] == {
        "images": 5,
        "studies": 4,
        "studies_without_report": 1,
        "studies_without_section": 1,
    }
    seen = splits["train"].manifest["report"]["images_seen"]
    assert seen == splits["train"].num_images + 2 == report["corpus"]["train"]["images"]
    assert splits["train"].manifest["kind"] == "pairs"
    assert all(verify(split.folder) == [] for split in splits.values())


def test_options(tmp_path, capsys):
    """--join, --sections, --last-paragraph or --views without effect, or not told apart later."""
    raw = tmp_path / "raw"
    write(raw)
    joined = 'Clear lungs, "normal" heart size. No acute disease.'
    options = {
        "a": (
            ["--join", "--last-paragraph"],
            {
                "a1-0": [joined],
                "a2-0": [joined],
                "b1-0": ["Small left effusion seen."],
                "c1-0": ["Lines are in place."],
            },
        ),
        "b": (
            ["--sections", "impression"],
            {"a1-0": ["No acute disease."], "a2-0": ["No acute disease."]},
        ),
        "c": (
            ["--views", "pa", "AP", "--sections", "findings", "impression", "--join"],
            {"a1-0": [joined], "b1-0": ["Small left effusion seen."]},
        ),
    }
    for out, (more, expected) in options.items():
        more = [*more, "--split", "train"]
        assert mimic_cxr.main(arguments(raw, *more, out=out)) == 0
        assert texts_of(Shards(tmp_path / out / "train")) == expected
    assert dropped(Shards(tmp_path / "c" / "train")) == {
        "image: view LATERAL not among --views": 1,
        "image: view unknown not among --views": 1,
        "image: its study has no row in mimic_cxr_sectioned": 1,
    }
    capsys.readouterr()
    assert mimic_cxr.main(arguments(raw, "--split", "train", out="c")) == 1
    assert "views was ['AP', 'PA'], is None" in capsys.readouterr().err
    assert mimic_cxr.main(arguments(raw, "--views", "XX", out="d")) == 1
    assert "--views XX: the metadata have AP, LATERAL, PA" in capsys.readouterr().err


def test_bad_rows_are_counted(tmp_path):
    """An id from a table that leads out of the folder, or a bad row that ends the run."""
    raw = tmp_path / "raw"
    bad = [
        ("../../../../one", "50000001", "10000032", "train", "PA"),
        ("x1", "5/../../1", "10000032", "train", "PA"),
        ("x2", "50000001", "", "train", "PA"),
        ("x3\0", "50000001", "10000032", "train", "PA"),
        ("x4", "50000001.0", "10000032", "train", "PA"),
        ("x5", "50000001", "10000032", "trial", "PA"),
    ]
    write(raw, images=IMAGES)
    rows = [
        ["dicom_id", "study_id", "subject_id", "split"],
        *(row[:4] for row in IMAGES + bad),
        ["x6"],
        ["a1-0", "50000001", "10000032", "train"],
    ]
    write_table(raw / "mimic-cxr-2.0.0-split.csv.gz", rows)
    more = [["s50000001", "Another one.", "", "", ""], ["50x", "a b c", "", "", ""], ["s5"]]
    write_table(raw / "mimic_cxr_sectioned.csv", SECTIONED + more)
    with open(raw / "mimic_cxr_sectioned.csv", "ab") as file:
        file.write(b"s50000009,\xff is not text,,,\n")
    (raw / "files/p10/p10000032/s50000002/b1-0.jpg").unlink()
    assert mimic_cxr.main(arguments(raw, "--min-words", "1")) == 0
    assert dropped(Shards(tmp_path / "out" / "train")) == {
        "image: dicom_id, study_id or subject_id is no id (any split)": 5,
        "image: unknown split (any split)": 1,
        "row: more or fewer cells than the header has (any split)": 2,
        "report: study occurs twice, first one kept (any split)": 1,
        "report: study is not like s50414267 (any split)": 1,
        "report: not UTF-8 (any split)": 1,
        "image: key occurs twice, first one kept": 1,
        "image: its study has none of the sections": 1,
        "image: its study has no row in mimic_cxr_sectioned": 1,
        "image: missing": 1,
        "text: its image was left out": 3,
    }
    train = Shards(tmp_path / "out" / "train")  # rows of any split are in no split's sum
    assert train.manifest["report"]["images_seen"] == train.num_images + 4 == 6


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("mimic-cxr-2.0.0-split.csv.gz", None, "a table of MIMIC-CXR (.csv.gz or .csv)"),
        ("mimic-cxr-2.0.0-split.csv.gz", b"dicom_id,study_id\n", "damaged (Not a gzipped file"),
        ("mimic-cxr-2.0.0-split.csv.gz", gzip.compress(b"dicom_id\n"), "no column 'study_id'"),
        ("mimic-cxr-2.0.0-split.csv.gz", gzip.compress(b"dicom_id," * 999)[:-9], "damaged"),
        (
            "mimic-cxr-2.0.0-split.csv.gz",
            gzip.compress(b"dicom_id,study_id,subject_id,split\n"),
            "no image in the table of splits",
        ),
        ("mimic_cxr_sectioned.csv", b"study,findings,impression\n", "no image is left"),
        ("files", None, "MIMIC-CXR-JPG's images"),
    ],
)
def test_mistakes(tmp_path, capsys, name, content, message):
    """A table that is missing or cut short ends in a traceback, or in an empty corpus."""
    raw = tmp_path / "raw"
    write(raw)
    (raw / name).rename(raw / "away")
    if content is not None:
        (raw / name).write_bytes(content)
    assert mimic_cxr.main(arguments(raw)) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("error: ") == 1


def test_a_split_that_the_table_lacks_is_named(tmp_path, capsys):
    """Users who fetched a part of the corpus cannot prepare it, or are not told what lacks."""
    write(tmp_path / "raw", images=IMAGES[:2])
    assert mimic_cxr.main(arguments(tmp_path / "raw")) == 0
    assert "no split valid in it, it is left out" in capsys.readouterr().out
    assert not (tmp_path / "out" / "valid").exists()


IDS = ["dicom_id", "study_id", "subject_id", "split"]
REPORTS = ["study", "impression", "findings", "last_paragraph", "comparison"]


def test_mimic_tables(tmp_path):
    """A damaged table (or gzip) ends in a traceback, or an id leads out of the images' folder."""
    raw = Path(os.path.normpath(tmp_path))
    good = [["a-1", "50000001", "10000032", "train"], ["a-2", "50000001", "10000032", "test"]]

    @MANY
    @given(
        images=table(IDS),
        reports=table(REPORTS),
        views=table(["dicom_id", "ViewPosition"]),
        cut=CUTS,
        zipped=st.booleans(),
        join=st.booleans(),
        fallback=st.booleans(),
    )
    def check(images, reports, views, cut, zipped, join, fallback):
        paths = {}
        for name, (head, rows) in {"ids": images, "texts": reports, "views": views}.items():
            data = as_csv([head, *rows, *(good if name == "ids" and head == IDS else [])])
            data = gzip.compress(data, 0) if zipped else data
            paths[name] = raw / f"{name}.csv{'.gz' if zipped else ''}"
            paths[name].write_bytes(damage(data, cut) if cut else data)
        drops = Drops()
        try:
            texts = mimic_cxr.read_texts(paths["texts"], ["findings"], join, fallback, drops)
            said = mimic_cxr.read_views(paths["views"], drops)
            ids = mimic_cxr.read_ids(paths["ids"], drops)
        except ALLOWED:
            assert cut or [images[0], reports[0], views[0]] != [
                IDS,
                REPORTS,
                ["dicom_id", "ViewPosition"],
            ]
            return
        if not cut:
            total = sum(map(len, ids.values())) + len(texts) + len(said) + drops.counts.total()
            rows = [row for _, some in (images, reports, views) for row in some if row]
            assert total == len(rows) + len(good)
        for found in ids.values():
            mimic_cxr.count_corpus(found, texts)
            for known in (None, said):
                left = Drops()
                kept = mimic_cxr.keep_usable(found, texts, known, ["PA"], left)
                assert len(kept) + left.counts.total() == len(found)
            items = mimic_cxr.Images(raw / "files", found, {study: ("a",) for _, study, _ in found})
            check_items({item.key: item for item in items}.values(), raw / "files")

    check()
