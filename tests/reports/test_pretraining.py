"""The run report: from whatever lies in the folder to one page that tells no more than that."""

import html.parser
import json
import re
import shutil

import pytest
from PIL import Image

from m3ae import score
from m3ae.reports import parts
from m3ae.reports.pretraining import Run, learning_rates, main, write_report
from tests.recipe import ROOT


def measure(value, width=0.01):
    return {"value": value, "low": value - width, "high": value + width, "n": 812}


def train_line(step, **values):
    rates = {"encoder, decay": 1e-5, "head, decay": 5e-5, "fusion, no decay": 5e-5}
    line = {
        "kind": "train",
        "step": step,
        "samples": 256 * step,
        "loss": 3.0,
        "mlm_loss": 1.5,
        "mim_loss": 1.0,
        "itm_loss": 0.5,
        "mlm_accuracy": 0.61,
        "itm_accuracy": 0.8,
        "lr": rates,
        "grad_norm": 2.0,
        "samples_per_s": 1234.0,
        "data_wait_s": 1.0,
        "mfu": None,
        "peak_memory_gib": 3.5,
        "seconds": 10.0,
    }
    return line | values


def eval_line(step, loss):
    return {
        "kind": "eval",
        "step": step,
        "samples": 1000,
        "loss": loss,
        "mlm_loss": loss / 2,
        "mlm_accuracy": 0.4567,
        "mim_loss": loss / 4,
        "itm_loss": loss / 4,
        "itm_accuracy": 0.75,
    }


EVALUATION = {
    "step": 100,
    "samples": 1000,
    "protocol": "fixed masks",
    "seconds": 40.1,
    "measures": {
        "mlm_accuracy": {
            "own": measure(0.712),
            "other": measure(0.655),
            "none": measure(0.671),
            "own - none": measure(0.041),
            "own - other": measure(0.057),
        },
        "mim_loss": {
            "own": measure(0.701),
            "other": measure(0.705),
            "none": measure(0.706),
            "none - own": measure(0.005),
            "other - own": measure(0.004),
        },
    },
    "attributes": {
        "modality": {
            "tag": "",
            "n": 812,
            "majority": 0.27,
            "own": 0.97,
            "other": 0.25,
            "none": 0.26,
            "gain": measure(0.71),
        },
        "small <lesion>": {"tag": "fine", "n": 40, "majority": 0.5, "own": 0.6},
    },
    "itm": {"random": measure(0.93), "hard_rule": "a false image shares modality"},
}


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "runs" / "pretrain" / "demo"
    (folder / "pictures").mkdir(parents=True)
    shutil.copy(ROOT / "configs/pretrain/m3ae.yaml", folder / "config.yaml")
    facts = {"parameters": 347312345, "device": "H200", "processes": 8, "commit": "abc<123>"}
    (folder / "environment.json").write_text(json.dumps(facts))
    lines = [{"kind": "note", "step": 0, "message": "frozen: <b>"}, eval_line(0, 9.8765)]
    lines += [train_line(step) for step in (50, 100)] + [eval_line(100, 3.21)]
    write_log(folder, lines)
    (folder / "evaluation.json").write_text(json.dumps(EVALUATION))
    for step in (0, 50, 100):
        Image.new("RGB", (8, 8)).save(folder / "pictures" / f"step-{step:08d}.png")
    return folder


@pytest.fixture
def quick_charts(monkeypatch):
    """Drawing takes most of a report's time; tests of other parts do without."""
    monkeypatch.setattr(parts, "chart", lambda *args, **options: "<figure></figure>")


def write_log(folder, lines):
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


class Page(html.parser.HTMLParser):
    """Tags and the visible text of a page; fails on tags that do not close in order."""

    VOID = ("meta", "img", "br")

    def __init__(self, path):
        super().__init__()
        self.tags, self.open, self.texts = [], [], []
        self.feed(path.read_text(encoding="utf-8"))
        assert not self.open
        self.text = re.sub(r"\s+", " ", " ".join(self.texts))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.texts.append(data)


def test_whole_report(run):
    """Catches numbers in the wrong place or format, and markup that user text breaks."""
    page = Page(write_report(run))
    for expected in (
        "pretrain/demo",
        "100 of 100,000 steps, 25,600 pairs seen, on 8 x H200",
        "347 M",
        "9.877",
        "3.210",
        "45.7 %",
        "held out, step 0",
        "training, step 100",
        "71.2 % [70.2, 72.2]",
        "+4.1 points [+3.1, +5.1]",
        "+0.005 [−0.005, +0.015]",
        "Masked words: the image helps",
        "Masked patches: no effect of the text is shown",
        "small <lesion> fine",
        "97.0 %",
        "93.0 %",
        "a false image shares modality",
        "After 0 steps",
        "After 100 steps",
        "frozen: <b>",
        "abc<123>",
        "1.23 k pairs/s",
        "not measured",
        "10.0 %",
        "final evaluation: after step 100",
    ):
        assert expected.lower() in page.text.lower(), expected
    assert "After 50 steps" not in page.text


def test_page_needs_no_other_file(run):
    """Catches links, fonts, scripts and images from outside, and ids that two charts share."""
    path = write_report(run)
    page = Page(path)
    names = [name for name, _ in page.tags]
    assert not {"script", "link", "iframe"} & set(names)
    assert names.count("img") == 2
    for _, values in page.tags:
        for key in ("src", "href", "xlink:href"):
            assert values.get(key, "#").startswith(("#", "data:image/png;base64,"))
    ids = [values["id"] for _, values in page.tags if "id" in values]
    assert len(ids) == len(set(ids))
    text = path.read_text(encoding="utf-8")
    assert all(f'"#{used}' in text or used in ids for used in re.findall(r"url\(#([^)]+)\)", text))
    assert "@import" not in text
    assert "#0101" not in text and "#0202" not in text  # stand-in colours of the charts


@pytest.mark.parametrize(
    "missing", ["config.yaml", "environment.json", "log.jsonl", "evaluation.json", "pictures"]
)
def test_a_missing_file_is_a_missing_section(run, missing, quick_charts):
    """Catches a report that cannot be had of an unfinished or trimmed run."""
    path = run / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    text = Page(write_report(run)).text
    titles = {
        "log.jsonl": ["Key numbers", "Notes"],
        "evaluation.json": ["Are both modalities used?", "Words that", "Image-text matching"],
        "pictures": ["Reconstructions"],
    }
    for file, names in titles.items():
        for name in names:
            assert (f" {name}" in text.replace("matching:", "")) == (file != missing), name


def test_an_empty_run(tmp_path):
    """Catches an IndexError before the first log line."""
    text = Page(write_report(tmp_path)).text
    assert "no training step is logged" in text
    assert "Curves" not in text
    with pytest.raises(FileNotFoundError, match="no such run"):
        write_report(tmp_path / "nothing")


def test_absent_objectives_and_values(run):
    """Catches rows of objectives that are off, and nan or null shown as a number."""
    config = (run / "config.yaml").read_text()
    config = re.sub(r"(  itm:.*\n    weight: )1.0", r"\g<1>0", config)
    (run / "config.yaml").write_text(config)
    line = train_line(50, mlm_loss=float("nan"), mlm_accuracy=None, grad_norm=None)
    write_log(run, [{k: v for k, v in line.items() if not k.startswith("itm")}])
    (run / "evaluation.json").write_text('{"measures": {"mlm_accuracy": {"own": {}}}}')
    assert Run(run).objectives == ["mlm", "mim"]
    text = Page(write_report(run)).text
    assert "Matching" not in text
    assert "Gradient norm" not in text
    assert "Masked words: loss not measured" in text
    assert " nan" not in text.lower()
    assert "Masked words: not measured" in text


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (
            "log.jsonl",
            '{"kind": "note", "step": 0}\n{"kind": "tra',
            r"log\.jsonl, line 2: not JSON",
        ),
        ("log.jsonl", "\n[1]\n", r"log\.jsonl, line 2: no kind, step"),
        ("log.jsonl", '{"kind": "train", "step": 1}', r"log\.jsonl, line 1: no samples"),
        ("evaluation.json", "{", r"evaluation\.json is not valid JSON"),
        ("environment.json", "[]", r"environment\.json: expected a JSON object"),
    ],
)
def test_names_the_corrupt_file(run, file, content, message, capsys):
    """Catches silence over lost lines, and errors that do not say where to look."""
    (run / file).write_text(content)
    with pytest.raises(ValueError, match=message):
        write_report(run)
    assert main([str(run)]) == 2
    assert file in capsys.readouterr().err


def test_command_writes_the_report_again(run, capsys, quick_charts):
    """Catches a command that leaves the old page or a half-written file."""
    (run / "report.html").write_text("old")
    assert main([str(run)]) == 0
    assert capsys.readouterr().out.strip() == str(run / "report.html")
    assert "old" != (run / "report.html").read_text()
    assert not list(run.glob("*.tmp"))


def test_places_on_the_curves(run):
    """Catches held-out points at their own number of pairs, and steps that a resume wrote twice."""
    lines = [train_line(50), train_line(100, loss=9.0), train_line(100, loss=1.0), eval_line(75, 3)]
    write_log(run, lines)
    read = Run(run)
    assert [line["loss"] for line in read.train] == [3.0, 1.0]
    assert read.seen(read.held_out[0]) == 75 * 256
    write_log(run, [eval_line(10, 3)])
    read = Run(run)
    assert read.seen(read.held_out[0]) == 10 * 256  # the config's batch


def test_groups_of_one_rate_share_a_line(run):
    """Catches six lines on top of each other, or groups lost from the legend."""
    lines = learning_rates(Run(run))
    assert [line.label for line in lines] == ["encoder", "head and fusion"]
    assert lines[1].y == [5e-5, 5e-5]


def test_numbers_as_text():
    """Catches units and signs lost, and 0 taken for a missing number."""
    assert parts.percentage(0.0) == "0.0 %"
    assert parts.percentage(-0.0123, signed=True) == "−1.2"
    assert parts.loss(1.23456) == "1.235"
    assert parts.percentage(None) == parts.loss(float("nan")) == parts.count(True) == "not measured"
    assert [parts.duration(seconds) for seconds in (5, 90, 7200)] == ["5 s", "1.5 min", "2.0 h"]
    assert parts.with_interval({"value": 0.5}, is_loss=False) == '<span class="unit">50.0 %</span>'
    assert "not measured" in parts.with_interval(None, is_loss=True)
    assert "harms" in parts.verdict(measure(-0.5), "image")


def test_large_pictures_are_compressed(run, monkeypatch, quick_charts):
    """Catches a page of tens of megabytes."""
    monkeypatch.setattr(parts, "LARGE_PICTURE", 10)
    assert "data:image/jpeg;base64," in write_report(run).read_text()


def test_name_of_a_run(tmp_path):
    """Catches the machine's folders in the title."""
    for place, name in (
        ("runs/pretrain/a", "pretrain/a"),
        ("elsewhere/b", "b"),
        ("x/runs", "runs"),
    ):
        (tmp_path / place).mkdir(parents=True)
        assert Run(tmp_path / place).name == name


def test_fine_tuning(run, tmp_path):
    """A gain of the wrong sign, or the baselines' figures beside each other's names."""

    def row(name, prediction):
        return {
            "id": f"{name}/0",
            "image": name,
            "question": "what",
            "answer": "yes",
            "prediction": prediction,
            "type": "closed",
            "question_type": "x",
        }

    files = {}
    for name, right in (("with", 6), ("without", 2)):
        rows = [row(f"i{k}", "yes" if k < right else "no") for k in range(8)]
        files[name] = tmp_path / f"{name}.jsonl"
        files[name].write_text("".join(json.dumps(entry) + "\n" for entry in rows))
    out = ["--protocol", "strict", "--json", str(run / "fine_tuning.json"), "--samples", "200"]
    assert score.main([str(files["with"]), "--against", str(files["without"]), *out]) == 0
    text = write_report(run).read_text()
    part = text[text.index("Fine-tuning") :]
    part = part[: part.index("</section>")]
    assert "75.0" in part and "+50.0" in part and "25.0" in part and "strict" in part
