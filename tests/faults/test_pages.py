"""Markup and control characters in data: every page escapes them, no terminal gets them raw."""

import html
import html.parser
import json
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from data_prep import audit, table, verify
from m3ae import score
from m3ae.data.shards import Shards
from m3ae.files import one_line, printable
from m3ae.reports import parts
from m3ae.reports.differences import differing, sheet
from m3ae.reports.pretraining import write_report
from m3ae.scoring.predictions import complete, write_predictions
from tests.faults.offered import whole
from tests.reports.test_pretraining import EVALUATION, train_line
from tests.reports.test_tables import corpora, made  # noqa: F401  (fixtures)

ESCAPES = "\x1b[31m\x1b]0;title\x07\x9b2J\u202e\u2028"
MARKUP = "\"'><script>alert(1)</script><img src=x onerror=alert(1)></td>&lt;"
# In a file's name no slash may be.
NAMES = ("<img src=x onerror=alert(1)>\x1b[31m", "\"'><b>\x9b2J\u202e")
BARS = "\x1b[A"  # one progress bar below another
RAW = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


class Scripts(html.parser.HTMLParser):
    """What a page would run or load."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        here = [f"{name}={value}" for name, value in attrs if name.startswith("on")]
        here += [
            f"{name}={value[:30]}"
            for name, value in attrs
            if name in ("src", "href") and re.match(r"x$|javascript:|https?:", value or "")
        ]
        if tag in ("script", "iframe", "object", "embed", "base"):
            here.append(tag)
        self.found += here


def scripts(path: Path) -> list[str]:
    return Scripts(path.read_text(encoding="utf-8")).found


def test_the_check_finds_scripts(tmp_path):
    """A check that passes whatever a page holds."""
    (tmp_path / "x.html").write_text(MARKUP)
    assert scripts(tmp_path / "x.html") == ["script", "onerror=alert(1)", "src=x"]


def hostile(value: object) -> object:
    """The same, every text and name followed by markup."""
    if isinstance(value, dict):
        return {key: hostile(x) for key, x in value.items()}
    if isinstance(value, list):
        return [hostile(x) for x in value]
    return f"{value}{MARKUP}" if isinstance(value, str) else value


def test_report_of_a_run(tmp_path, monkeypatch):
    """Markup in a note, a device, an attribute's name, a config or a protocol, run by a browser."""
    monkeypatch.setattr(parts, "chart", lambda title, *_, **__: f"<i>{html.escape(title)}</i>")
    lines = [{"kind": "note", "step": 0, "message": MARKUP}, train_line(1)]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    evaluation = hostile(EVALUATION)
    evaluation["attributes"][MARKUP] = evaluation["attributes"]["modality"]
    evaluation["measures"][MARKUP] = evaluation["measures"]["mlm_accuracy"]
    (tmp_path / "evaluation.json").write_text(json.dumps(evaluation))
    environment = {"device": MARKUP, "commit": [MARKUP], MARKUP: MARKUP}
    (tmp_path / "environment.json").write_text(json.dumps(environment))
    (tmp_path / "config.yaml").write_text(f"output: {json.dumps(MARKUP)}\n")
    part = {"questions": 3, "accuracy": 0.5, "low": 0.4, "high": 0.6}
    part |= {"interval": [0.4, 0.6], "images": 30}
    blind = {"accuracy": 0.1, "difference": 0.2, "difference_interval": [0.1, 0.3]}
    part |= {"blind": {MARKUP: blind}}
    scored = {"results": {MARKUP: dict.fromkeys(("overall", "open", "closed"), part)}}
    (tmp_path / "fine_tuning.json").write_text(json.dumps(scored))
    page = write_report(tmp_path)
    assert scripts(page) == [] and "&lt;script&gt;" in page.read_text()


def test_audit_page(tmp_path, capsys):
    """Markup in the name of an image that another one matches."""
    picture = Image.effect_noise((64, 64), 50)
    for side, name in zip(("keep", "against"), NAMES, strict=True):
        (tmp_path / side).mkdir()
        picture.save(tmp_path / side / f"{name}.png")
    out = tmp_path / "list.txt"
    places = ["--keep", str(tmp_path / "keep"), "--against", str(tmp_path / "against")]
    assert audit.main([*places, "--out", str(out), "--workers", "0"]) == 0
    page = Path(f"{out}.html")
    assert scripts(page) == [] and "&lt;img" in page.read_text()
    assert not RAW.search("".join(capsys.readouterr()).replace(BARS, ""))


def rows(said: str) -> list[dict]:
    more = {"question": MARKUP + ESCAPES, "image": MARKUP, "question_type": MARKUP + ESCAPES}
    return [
        {"id": f"{MARKUP}{ESCAPES}{k}", "prediction": said, "answer": ("yes", "no")[k % 2]}
        | {"type": "open"}
        | more
        for k in range(40)
    ]


def test_differences_and_scores(tmp_path, capsys):
    """Markup in an id, a question or an answer; escape sequences that a score prints."""
    ours, theirs = (complete(rows(said), "file") for said in (MARKUP + ESCAPES, "yes"))
    page = tmp_path / "sheet.html"
    found = differing(ours, theirs, "strict", 5)
    page.write_text(sheet(found, None, (MARKUP, MARKUP)), encoding="utf-8")
    assert scripts(page) == [] and "&lt;script&gt;" in page.read_text()
    for name, said in (("a.jsonl", MARKUP + ESCAPES), ("b.jsonl", "yes")):
        write_predictions(tmp_path / name, rows(said))
    files = [str(tmp_path / "a.jsonl"), "--against", str(tmp_path / "b.jsonl")]
    status = score.main([*files, "--samples", "20", "--show-differences", "3"])
    printed = "".join(capsys.readouterr())
    assert status == 0, printed
    assert "\\x1b[31m" in printed and not RAW.search(printed)


@whole
def test_pages_of_tables(made, tmp_path):  # noqa: F811
    """Markup in a title, a row's or a column's name, a note."""
    from m3ae.reports.tables import write_pages

    _, out, results = made
    shutil.copytree(out, tmp_path / "out")
    names = ("title", "note", "text", "source")

    def changed(value: object, key: str = "") -> object:
        if isinstance(value, dict):
            return {name: changed(x, name) for name, x in value.items()}
        if isinstance(value, list):
            return [changed(x, key) for x in value]
        return f"{value}{MARKUP}" if isinstance(value, str) and key in names else value

    write_pages({name: changed(result) for name, result in results.items()}, tmp_path / "out")
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > 1
    assert all(scripts(page) == [] for page in pages)
    assert any("&lt;script&gt;" in page.read_text() for page in pages)


def test_preparation(tmp_path, capsys):
    """Escape sequences of a caption, a file's name, a column or a split, raw in the terminal."""
    raw = tmp_path / "raw"
    raw.mkdir()
    for name in NAMES:
        Image.effect_noise((40, 40), 50).save(raw / f"{name}.png")
    text, lines = MARKUP + ESCAPES.replace("\u2028", ""), []
    for name in (f"{NAMES[0]}.png", f"{NAMES[1]}.png", f"gone{ESCAPES}.png"):
        row = {"image": name, "question": text, "answer": text, f"column{ESCAPES}": text}
        lines.append(json.dumps(row))
    questions = tmp_path / "q.jsonl"
    questions.write_text("\n".join([*lines, f"not json{ESCAPES}"]) + "\n")
    out = tmp_path / "out"
    places = ["--table", str(questions), "--raw", str(raw), "--out", str(out)]
    assert table.main([*places, "--px", "16", "--workers", "0"]) == 0
    split = Shards(out / "train")
    assert split.num_images == 2 and split.text(0) == " ".join(text.split())
    assert verify.main([str(out)]) == 0
    printed = "".join(capsys.readouterr())
    assert "\\x1b[31m" in printed and not RAW.search(printed.replace(BARS, ""))


@pytest.mark.parametrize("text", [ESCAPES, MARKUP, "a\nb\r\tc", "\ud800", "ü 漢"])
def test_printable(text):
    """A control character that gets through, or a letter of another script that does not."""
    assert printable(text).isprintable() and one_line(text).isprintable()
    assert printable("ü 漢 <b>") == "ü 漢 <b>" and printable("\x1b[0m") == "\\x1b[0m"
    assert one_line("a\nb  c") == "a b c"
