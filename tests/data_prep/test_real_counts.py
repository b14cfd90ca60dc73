"""Counts of the real corpora, against what is published. Set M3AE_RAW to the folder that holds
`vqa_rad` and `vqa_med_2019` as downloaded; without it these tests are skipped, and say so."""

import hashlib
import json
import os
from pathlib import Path

import pytest

from data_prep import vqa_med_2019, vqa_rad
from m3ae.corpora.questions import labels
from m3ae.data.shards import Shards

LEAKED = Path(__file__).parents[2] / "docs/lists/vqa_rad_leaked.tsv"
SMALL = ["--px", "16", "--workers", "0"]


def real(name: str) -> Path:
    """A corpus below M3AE_RAW; skips the test where it is not there."""
    raw = os.environ.get("M3AE_RAW")
    if not raw:
        pytest.skip(f"set M3AE_RAW to the folder that holds the real corpus as {name}/")
    if not (Path(raw) / name).is_dir():
        pytest.skip(f"M3AE_RAW is {raw}, which has no {name}/: put the real corpus there")
    return Path(raw) / name


def test_vqa_rad(tmp_path):
    """A count that differs from the published ones: other rows trained on than in the paper."""
    raw, out = real("vqa_rad"), tmp_path / "out"
    assert vqa_rad.main(["--raw", str(raw), "--out", str(out), *SMALL]) == 0
    report = json.loads((out / "report.json").read_text())
    assert report["corpus"] == {
        "image_files": 315,
        "images_asked_about": {"all": 314, "train": 313, "test": 203},
        "training_sets": {"paper": 3064, "strict": 2780, "unframed": 1797},
        "framed": 1267,
        "leaked": 284,
        "test": {"questions": 451, "closed": 272, "open": 179},
    }
    assert report["answers"]["paper"] == {"answers": 498, "test_coverage": 1.0}
    assert report["answers"]["train"] == {"answers": 418, "test_coverage": 0.7517}
    train, test = Shards(out / "train"), Shards(out / "test")
    assert (len(train), len(test)) == (3064, 451)
    fields = [train.fields(i) for i in range(len(train))]
    assert sum(not row["leaked"] for row in fields) == 2780
    assert sum(not row["framed"] for row in fields) == 1797
    assert not any(split["report"]["dropped"] for split in report["splits"].values())
    # The one test image that no train question is on comes into `train` by a leaked row alone.
    images = [train.image_key(int(j)) for j in train.image_of_text]
    asked = {image for image, row in zip(images, fields, strict=True) if not row["framed"]}
    alone = {image for image, row in zip(images, fields, strict=True) if image not in asked}
    assert len(alone) == 1 and (train.num_images, test.num_images) == (314, 203)
    answers = json.loads((out / "answers.json").read_text())
    sizes = {name: len(known) for name, known in answers.items()}
    assert sizes == {"paper": 498, "train": 418, "reference_order": 498}
    right = sum(test.fields(i)["label"] in answers["train"] for i in range(len(test)))
    assert (right, round(100 * right / len(test), 1)) == (339, 75.2)


def test_vqa_rad_list_of_leaked_questions(tmp_path):
    """The committed list names other rows than the script finds, or what it says of them is off."""
    raw, out = real("vqa_rad"), tmp_path / "out"
    assert vqa_rad.main(["--raw", str(raw), "--out", str(out), *SMALL]) == 0
    made = [line.split("\t") for line in (out / vqa_rad.LEAKED).read_text().splitlines()]
    lines = [line for line in LEAKED.read_text().splitlines() if not line.startswith("#")]
    assert lines[0].split("\t") == ["question_id", "image_name", "qid"]
    listed = [line.split("\t") for line in lines[1:]]
    assert len(listed) == 284 and len({qid for _, _, qid in listed}) == 284
    assert [(i, f"{image}.jpg", i.removesuffix("-frame")) for i, image, _ in made] == [
        tuple(row) for row in listed
    ]
    official = {str(row["qid"]): row for row in json.loads((raw / vqa_rad.OFFICIAL).read_text())}
    for (_, image, qid), (_, _, question) in zip(listed, made, strict=True):
        row = official[qid]
        assert row["phrase_type"].startswith("test_") and row["image_name"] == image
        assert " ".join(row["question_frame"].split()) == question
    # By image and text, seven rows that are frames of training rows are the same.
    train = Shards(out / "train")
    texts = {(image, question) for _, image, question in made}
    images = [train.image_key(int(j)) for j in train.image_of_text]
    assert sum((images[i], train.text(i)) in texts for i in range(len(train))) == 291


def test_vqa_rad_parquet_copy(tmp_path):
    """Rows joined to another image's question. The copy is made again as its card says: without 3
    training rows that occur twice and 1 that is in the test set, in lower case."""
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    raw = real("vqa_rad")
    rows = json.loads((raw / vqa_rad.OFFICIAL).read_text())
    tests = [row for row in rows if row["phrase_type"].startswith("test")]

    def triplet(row: dict) -> tuple[str, str, str]:
        words = [" ".join(str(row[name]).split()).lower() for name in ("question", "answer")]
        return row["image_name"], *words

    trains = {triplet(row): None for row in rows if row not in tests}
    tested = [triplet(row) for row in tests]
    (tmp_path / "copy").mkdir()
    names = {}
    for split, some in (("train", [t for t in trains if t not in tested]), ("test", tested)):
        table = []
        for image, question, answer in some:
            data = (raw / vqa_rad.IMAGES / image).read_bytes()
            names[hashlib.sha256(data).hexdigest()[:16]] = image
            stored = {"bytes": data, "path": None}
            table.append({"image": stored, "question": question, "answer": answer})
        file = tmp_path / "copy" / f"{split}-00000-of-00001-0a.parquet"
        parquet.write_table(pyarrow.Table.from_pylist(table), file, row_group_size=200)
    arguments = ["--raw", str(tmp_path / "copy"), *SMALL, "--out"]
    assert vqa_rad.main([*arguments, str(tmp_path / "alone")]) == 0
    report = json.loads((tmp_path / "alone" / "report.json").read_text())
    assert report["corpus"] == {
        "image_files": 314,
        "images_asked_about": {"all": 314, "train": 313, "test": 203},
        "training_sets": {"copy": 1793},
        "framed": None,
        "leaked": None,
        "test": {"questions": 451, "closed": 251, "open": 200},
    }
    more = ["--official", str(raw / vqa_rad.OFFICIAL)]
    assert vqa_rad.main([*arguments, str(tmp_path / "joined"), *more]) == 0
    report = json.loads((tmp_path / "joined" / "report.json").read_text())
    corpus = report["corpus"]
    assert corpus["test"] == {"questions": 451, "closed": 272, "open": 179}
    assert [part["not_joined"] for part in corpus["joined"].values()] == [0, 0]
    assert corpus["training_sets"] == {"copy": 1793, "strict": 1793, "unframed": 1793}
    assert report["answers"]["train"] == {"answers": 417, "test_coverage": 0.7472}
    image_of = {str(row["qid"]): row["image_name"] for row in rows}
    for split in ("train", "test"):
        found = Shards(tmp_path / "joined" / split)
        for i in range(len(found)):
            key = found.image_key(int(found.image_of_text[i]))
            assert image_of[found.fields(i)["qid"]] == names[key.removeprefix("sha256-")]


def test_vqa_med_2019(tmp_path):
    """Another number of answers or test questions than the paper's 79 and 375."""
    raw, out = real("vqa_med_2019"), tmp_path / "out"
    more = ["--as", "questions", "--raw", str(raw)]
    assert vqa_med_2019.main([*more, "--out", str(out), *SMALL]) == 0
    report = json.loads((out / "report.json").read_text())
    assert report["corpus"] == {
        "train": {
            "image_files": 3200,
            "images_asked_about": 3200,
            "questions": 9600,
            "closed": 1184,
            "open": 8416,
        },
        "valid": {
            "image_files": 500,
            "images_asked_about": 500,
            "questions": 1500,
            "closed": 179,
            "open": 1321,
        },
        "test": {
            "image_files": 500,
            "images_asked_about": 375,
            "questions": 375,
            "closed": 53,
            "open": 322,
        },
    }
    lists = {name: entry["answers"] for name, entry in report["answers"].items()}
    assert lists == {"paper": 79, "train": 69, "train_valid": 71}
    for name, split in report["splits"].items():
        assert split["counts"]["texts"] == report["corpus"][name]["questions"]
        assert not split["report"]["dropped"]


def test_vqa_med_2019_all_categories():
    """Questions of a category lost: the corpus has 15,292 on 3,200, 500 and 500 images."""
    sources = vqa_med_2019.find_sources(real("vqa_med_2019"), vqa_med_2019.NAMES)
    drops = vqa_med_2019.Drops()
    asked = {
        split: vqa_med_2019.read_questions(source, vqa_med_2019.NAMES, drops)
        for split, source in sources.items()
    }
    counts = {split: len({question.image for question in asked[split]}) for split in asked}
    assert counts == {"train": 3200, "valid": 500, "test": 500}
    assert sum(map(len, asked.values())) == 15292 and not drops.counts
    for split, source in sources.items():
        assert all((source.images / question.image).is_file() for question in asked[split])


def test_vqa_med_2019_accepted_answers():
    """`#` or `(...)` of a test answer not honoured: right answers counted as wrong."""
    expected = {
        vqa_med_2019.NAMES[:3]: (375, 15, 9, 33, 365, 375),
        vqa_med_2019.NAMES: (500, 32, 12, 68, 451, 462),
    }
    for categories, counts in expected.items():
        sources = vqa_med_2019.find_sources(real("vqa_med_2019"), categories)
        train, valid, test = (
            vqa_med_2019.read_questions(source, categories, vqa_med_2019.Drops())
            for source in sources.values()
        )
        known = labels(train, valid)
        fields = [question.fields for question in test]
        marked = [row for row in fields if set("#()") & set(row["answer"])]
        assert (
            len(fields),
            len(marked),
            sum("#" in row["answer"] for row in fields),
            sum(len(row["alternatives"]) for row in marked),
            sum(row["label"] in known for row in fields),
            sum(not known.isdisjoint(row["alternatives"]) for row in fields),
        ) == counts
        # Every other answer has one reading, its label; every marked one has more.
        assert all((len(row["alternatives"]) > 1) == (row in marked) for row in fields)
        assert all(row["label"] in row["alternatives"] or "#" in row["answer"] for row in fields)
