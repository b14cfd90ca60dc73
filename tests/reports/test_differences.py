"""Items on which two models differ: which ones, as text, and as a page with their images."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from m3ae.data.questions import read_questions
from m3ae.data.shards import Shards
from m3ae.reports.differences import KINDS, as_lines, differing, sheet
from m3ae.scoring.predictions import complete
from tests.data_prep.test_vqa import RAD_ROWS, prepare_with, vqa_rad, write_rad


def rows_of(answers: list, **more: object) -> list[dict]:
    rows = [
        {"id": f"i/{k}", "prediction": said, "answer": "yes", "type": "closed", **more}
        for k, said in enumerate(answers)
    ]
    return complete(rows, "file")


def test_which_items_and_how_many():
    """Items that both have right, or as many as one kind has in place of the other."""
    ours, theirs = rows_of("yes no yes no no yes".split()), rows_of("no yes no no x yes".split())
    found = differing(ours, theirs[::-1], "strict", 1)
    assert found["counts"] == {"here": 2, "there": 1, "neither": 1}
    ids = {kind: [item["id"] for item in items] for kind, items in found["items"].items()}
    assert ids == {"here": ["i/0"], "there": ["i/1"], "neither": ["i/4"]}
    item = found["items"]["here"][0]
    assert item == {"id": "i/0", "image": "i", "truth": "yes", "here": "yes", "there": "no"}


def test_lines():
    """A list from which one cannot tell what was asked, true or said."""
    ours = rows_of(["yes", None], question="Is it a <mass>?", score=0.75)
    lines = as_lines(differing(ours, rows_of(["no", "yes"]), "strict", 5))
    assert lines[1] == "right here, wrong there: 1 items, 1 shown"
    assert lines[2:7] == [
        "  i/0",
        "    question  Is it a <mass>?",
        "    truth     yes",
        "    here      yes (0.75)",
        "    there     no",
    ]
    assert "    here      no answer (0.75)" in lines
    # Kept files without answers and texts.
    bare = [{"id": "a", "image": "a", "right": hit} for hit in (True, False)]
    found = differing(bare[:1], bare[1:], "strict", 5)
    assert as_lines(found)[1:3] == ["right here, wrong there: 1 items, 1 shown", "  a"]


@pytest.mark.parametrize("encoding", ["raw", "original"])
def test_sheet(tmp_path, encoding):
    """A page with another question's image, with markup of a corpus, or that loads other files."""
    write_rad(tmp_path / "raw", RAD_ROWS)
    prepare_with(vqa_rad, tmp_path / "raw", tmp_path / "out", "--encoding", encoding)
    test = read_questions(tmp_path / "out/test")
    ours = complete([{**row, "prediction": row["answer"]} for row in test], "ours")
    theirs = complete([{**row, "prediction": "<b>bold</b>"} for row in test], "theirs")
    found = differing(ours, theirs, "strict", 5)
    page = sheet(found, tmp_path / "out/test", ("ours.jsonl", "theirs.jsonl"))
    assert "<b>bold" not in page and "&lt;b&gt;bold" in page and "ours.jsonl" in page
    assert not re.search(r'(?:src|href)="(?!data:)', page)
    pictures = re.findall(r'alt="([^"]*)" src="data:image/jpeg;base64,([^"]*)"', page)
    shards = Shards(tmp_path / "out/test")
    keys = [shards.image_key(k) for k in range(shards.num_images)]
    assert [key for key, _ in pictures] == [row["image"] for row in ours]
    for key, data in pictures:
        with Image.open(io.BytesIO(base64.b64decode(data))) as image:
            shown = np.asarray(image.convert("L"), dtype=float)
        kept = shards.image(keys.index(key), shards.manifest["px"]).mean(axis=0)
        assert np.abs(shown - kept).mean() < 8
    bare = sheet(found, None, ("ours.jsonl", "theirs.jsonl"))
    assert "<img" not in bare and "No pictures" in bare
    assert all(title[1:] in bare for title in KINDS.values())
