"""The pages of tables: their numbers from the predictions alone, links, escapes, plots."""

import csv
import html
import json
import re
from pathlib import Path

import pytest

from m3ae.data.questions import read_questions
from m3ae.reports import tables_text as texts
from m3ae.reports.tables import write_pages
from m3ae.reports.tables_figure import draw
from m3ae.reports.tables_layout import as_published, verdicts
from m3ae.tables.results import collect
from tests.tables import made_up, recount

FILES = ("result.json", "table.md", "table.html", "table.tex", "table.csv", "figure.svg")


@pytest.fixture(scope="module")
def corpora(questions, shards, tmp_path_factory):
    tokenizer = shards / "tokenizer"
    classes = made_up.classes_of(tmp_path_factory.mktemp("classes"), tokenizer)
    return {"q": questions, "c": classes, "s": shards, "t": tokenizer}


@pytest.fixture(scope="module")
def made(corpora, tmp_path_factory):
    """A plan, OUT with its pages, and the result."""
    folder = tmp_path_factory.mktemp("tables")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        plan = made_up.plan_in(folder, corpora)
        made_up.finish(plan, folder / "out")
        results = collect(plan, folder / "out")
        write_pages(results, folder / "out")
        yield plan, folder / "out", results


def csv_rows(out: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((out / "0/table.csv").read_text().splitlines()))


class Recount:
    """The runs of a plan, counted again by `tests.tables.recount`."""

    def __init__(self, plan, out: Path):
        self.plan, self.out = plan, out

    def folders(self, row: str, column: str) -> dict[int, Path]:
        """Of the seeds that are finished."""
        cells = self.plan.cells["0"][row, column]
        found = {cell.seed: cell.folder(self.out) for cell in cells}
        return {seed: path for seed, path in found.items() if (path / "done.json").is_file()}

    def side(self, row: str, column: str, protocol: str, kind: str) -> dict[int, list[dict]]:
        """Rows by seed of own images, of an arm or of a blind baseline."""
        arm = f"-{kind}" if kind in ("other", "none") else ""
        runs = {
            seed: recount.rows_of(folder, protocol, arm)
            for seed, folder in self.folders(row, column).items()
        }
        if kind.startswith("blind"):
            baseline = {"blind majority": recount.majority, "blind nearest": recount.nearest}[kind]
            for seed, folder in self.folders(row, column).items():
                runs[seed] = baseline(self.trained_on(folder, protocol, column), runs[seed])
        return runs

    def trained_on(self, folder: Path, protocol: str, column: str) -> list[dict]:
        path = next(p for p in (folder / protocol, folder) if (p / "trained_on.txt").is_file())
        ids = set((path / "trained_on.txt").read_text().splitlines()[1:])
        data = self.plan.cells["0"]["none", column][0].resolved.data
        return [row for row in read_questions(data.train, data.field) if row["id"] in ids]

    def values(self, row: str, column: str, protocol: str, part: str, kind: str) -> dict:
        # Of macro-F1: every class occurs in every run, so that all sides have the same ones.
        runs = self.side(row, column, protocol, kind)
        return {seed: recount.score(rows, part) for seed, rows in runs.items()}


def test_every_number_is_that_of_the_predictions(made):
    """A number of the report that no prediction file gives; this test shares no code with it."""
    plan, out, _ = made
    again, rows = Recount(plan, out), csv_rows(out)
    kinds = {row["kind"].partition(":")[0] for row in rows}
    sides = {"other", "none", "blind majority", "blind nearest"}
    assert kinds == {"own", *sides, *(f"own - {side}" for side in sides)} | {
        "published",
        "own - published",
        "ordering",
    }
    for row in rows:
        place = row["row"], row["column"], row["protocol"], row["part"]
        kind, mean = row["kind"], row["mean"] and float(row["mean"])
        if kind in {"own", *sides}:
            values = list(again.values(*place, kind).values())
            wanted, sd = recount.mean_sd(values)
            assert mean == pytest.approx(wanted, abs=1e-9), row
            assert float(row["sd"]) == pytest.approx(sd, abs=1e-9), row
            questions, images = recount.counted(again.side(*place[:3], "own")[0], row["part"])
            assert (int(row["n"]), int(row["questions"])) == (len(values), questions), row
            assert int(row["images"]) == images and bool(row["low"]) == (images >= 20), row
            if row["low"]:
                assert 0 <= float(row["low"]) <= mean <= float(row["high"]) <= 1, row
        elif kind.removeprefix("own - ") in sides:
            own, other = (again.values(*place, side) for side in ("own", kind[6:]))
            gains = [own[seed] - other[seed] for seed in own]
            assert mean == pytest.approx(sum(gains) / len(gains), abs=1e-9), row
        elif kind == "own - published":
            (theirs,) = [
                float(one["mean"])
                for one in rows
                if one["kind"] == "published" and all(one[k] == row[k] for k in ("row", "part"))
                if one["column"] == row["column"]
            ]
            values = again.values(*place, "own").values()
            assert mean == pytest.approx(sum(values) / len(values) - theirs, abs=1e-9), row
        elif kind.startswith("ordering"):
            check_ordering(again, row)


def check_ordering(again: Recount, row: dict[str, str]) -> None:
    above, below = row["row"].split(" - ")
    where = row["column"], row["protocol"], row["part"], "own"
    if kind_is_not_run := row["kind"] == "ordering: not run":
        assert not again.folders(above, row["column"]) and not row["mean"]
    ours, theirs = (again.values(name, *where) for name in (above, below))
    gains = [ours[seed] - theirs[seed] for seed in ours if seed in theirs]
    if kind_is_not_run:
        return
    assert float(row["mean"]) == pytest.approx(sum(gains) / len(gains), abs=1e-9), row
    assert int(row["n"]) == len(gains)
    low, high = float(row["low"]), float(row["high"])
    verdict = "holds" if low > 0 else "does not hold" if high < 0 else "not shown"
    assert row["kind"] == f"ordering: {verdict}", row


def test_pages_show_the_numbers_of_the_csv(made):
    """A number under another column, row or protocol than its own, or rounded otherwise."""
    _, out, results = made
    own = {
        (row["row"], row["column"], row["protocol"], row["part"]): row
        for row in csv_rows(out)
        if row["kind"] == "own"
    }
    titles = {about["title"]: name for name, about in results["0"]["columns"].items()}
    rows = {about["title"]: name for name, about in results["0"]["rows"].items()}
    seen = set()
    for table in re.findall(r"<table class=\"sheet\">(.*?)</table>", html_page(out), re.S):
        groups = re.findall(r'colspan="(\d+)">(.*?)</th>', table)
        if not groups:
            continue
        spans = [title for width, title in groups for _ in range(int(width))]
        parts = re.findall(r'<th scope="col">(.*?)</th>', table)[1:]
        for line in re.findall(r'<tr class="ours">(.*?)</tr>', table):
            name = rows[html.unescape(re.sub("<.*?>", "", line.partition("</th>")[0]))]
            for span, part, cell in zip(
                spans, parts, re.findall("<td>(.*?)</td>", line), strict=True
            ):
                column, _, protocol = span.rpartition(", ")
                place = name, titles[column], protocol, part_name(part)
                if place not in own:
                    assert "not run" in cell
                    continue
                row = own[place]
                shown = f"{100 * float(row['mean']):.1f} ± {100 * float(row['sd']):.1f}"
                cell = cell.replace("\N{NO-BREAK SPACE}", " ")
                assert f">{shown}</a>" in cell, (place, cell)
                assert part.endswith(f"({row['questions']})")
                if row["low"]:
                    ends = f"[{100 * float(row['low']):.1f}, {100 * float(row['high']):.1f}]"
                    assert ends in cell, (place, cell)
                of = "" if row["n"] == "3" else " of 3"
                assert f"n = {row['n']}{of}<" in cell
                seen.add(place)
    assert seen == set(own)
    markdown = (out / "0/table.md").read_text()
    latex = (out / "0/table.tex").read_text().replace("$\\pm$", "±")
    for row in own.values():
        shown = f"{100 * float(row['mean']):.1f} ± {100 * float(row['sd']):.1f}"
        assert f"[{shown}](#runs-{row['row']}-{row['column']}-{row['protocol']})" in markdown
        assert shown in latex


def html_page(out: Path) -> str:
    return (out / "0/table.html").read_text()


def part_name(title: str) -> str:
    name = re.sub(r" \(\d+\)$", "", title).replace("macro-F1", "macro_f1")
    found = re.fullmatch(r"(text to image|image to text) R@(\d+)", name)
    return f"{'t2i' if found[1][0] == 't' else 'i2t'}_r{found[2]}" if found else name


def test_the_same_bytes_twice(made):
    """Pages that differ though no run does, or that a second process finds half written."""
    _, out, results = made
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert {out / "0" / name for name in FILES} < before.keys()
    write_pages(json.loads(json.dumps(results)), out)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_links_lead_somewhere(made):
    """A cell from which one does not get to its run, its predictions or its config."""
    _, out, _ = made
    for page, found in (
        (out / "0/table.html", r'href="([^"]*)"'),
        (out / "0/table.md", r"\]\(([^)]*)\)"),
        (out / "index.html", r'href="([^"]*)"'),
        (out / "README.md", r"\]\(([^)]*)\)"),
    ):
        text = page.read_text()
        links = set(re.findall(found, text))
        for link in links:
            if link.startswith("#"):
                assert f'id="{link[1:]}"' in text, (page, link)
            elif "not finished" not in link and not link.endswith(tuple(unmade(out))):
                assert (page.parent / link).exists(), (page, link)
        if page.parent.name == "0":
            ends = (".jsonl", "#config-whole", "#missing", "#runs-whole-questions-paper")
            assert all(any(link.endswith(end) for link in links) for end in ends)


def unmade(out: Path) -> list[str]:
    """Pre-trainings, whose folders the made-up runs lack."""
    result = json.loads((out / "0/result.json").read_text())
    sources = (source for entry in result["cells"] for source in entry["sources"])
    return [source["pretraining"] for source in sources if source["pretraining"]]


def test_what_is_missing_is_said_with_why(made):
    """A table that is not whole and does not say so, on its page or in the index."""
    _, out, _ = made
    pages = ("README.md", "index.html", "0/table.md", "0/table.html")
    for text in [(out / name).read_text() for name in pages]:
        assert "data are lacking: data/more/train" in text
        assert "MIM" in text and "seed 2" in text and "all seeds" in text
        assert "its pre-training is not finished: not run" in text
    assert "24 of 45 runs" in (out / "index.html").read_text()


def test_published_numbers_stand_beside_ours(made):
    """The paper's number in our type, without its source, or compared with what it is not."""
    _, out, results = made
    text = (out / "0/table.md").read_text()
    own = next(
        entry["parts"]["overall"]
        for entry in results["0"]["cells"]
        if (entry["row"], entry["column"], entry["protocol"]) == ("whole", "questions", "paper")
    )
    gain = f"{100 * (own['mean'] - 0.603):+.1f}".replace("-", "−")
    inside = "inside" if own["interval"][0] <= 0.603 <= own["interval"][1] else "outside"
    assert f"*60.3*<br>ours {gain}, {inside}" in text
    assert "nobody 2022, table 0<br>one run?" in text and "R&D\\_50%" in text and "*79.2*" in text
    other = text[text.index("## Published, on other data") :]
    assert "Not comparable" in other and "12.34" in other and "60.3" not in other
    assert [as_published(value) for value in (0.7701, 0.5, 0.792, 0.123456)] == [
        "77.01",
        "50.0",
        "79.2",
        "12.3456",
    ]


def test_the_picture_sheet_follows_its_rule(made):
    """Pictures chosen by hand, of another seed, or without the rule that chose them."""
    plan, out, _ = made
    page = (out / "0/differences-questions-paper.html").read_text()
    rule = "the first 2 of each kind, in the order of the test set, of the first seed"
    assert all(rule in (out / name).read_text() for name in ("0/table.md", "0/table.html"))
    again = Recount(plan, out)
    here, there = (again.side(row, "questions", "paper", "own")[0] for row in ("whole", "none"))
    right = [
        ours["id"]
        for ours, theirs in zip(here, there, strict=True)
        if ours["prediction"] == recount.truth(ours) and theirs["prediction"] != recount.truth(ours)
    ]
    shown = re.findall("<figcaption>(.*?)</figcaption>", page.partition("Wrong here")[0])
    assert shown == [html.escape(name) for name in right[:2]]
    assert f"{len(right)} items, 2 shown" in page
    assert page.count('src="data:image/jpeg') == page.count("<figcaption>") > 0


def test_latex_escapes():
    """A title that ends a cell, begins a comment, or does not compile."""
    text = "100 % of $ & _x_ {b} # ~ ^ \\ < > | [½] é − ± “q” 中 \N{NO-BREAK SPACE}."
    assert texts.tex(text) == (
        r"100 \% of \$ \& \_x\_ \{b\} \# \textasciitilde{} \textasciicircum{} "
        r"\textbackslash{} \textless{} \textgreater{} \textbar{} {[}1/2{]} é $-$ $\pm$ ``q'' ? ."
    )


def test_latex_of_a_table(made):
    """A fragment that asks for more packages than it says, or has lines of unequal width."""
    _, out, _ = made
    text = (out / "0/table.tex").read_text()
    body = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    commands = set(re.findall(r"\\([a-zA-Z]+)", body))
    plain = {"begin", "end", "scriptsize", "tiny", "setlength", "tabcolsep", "linewidth", "caption"}
    plain |= {"textit", "raggedright", "newline", "multicolumn", "hspace", "tabularnewline", "pm"}
    booktabs = {"toprule", "midrule", "bottomrule", "cmidrule", "endhead"}
    escapes = {"textbar", "textbackslash", "textasciitilde", "textasciicircum", "textless"}
    assert commands <= plain | booktabs | escapes | {"textgreater"}
    for table in re.findall(r"\\begin{longtable}.*?\\end{longtable}", body, re.S):
        width = re.match(r"\\begin{longtable}{(.*)}\n", table)[1].count(r"\linewidth")
        for line in table.splitlines():
            if r"\tabularnewline" in line and not line.startswith((r"\caption", " & ")):
                assert len(re.findall(r"(?<!\\)&", line)) == width - 1, line
    escaped = re.sub(r"\\.", "", body)
    assert escaped.count("{") == escaped.count("}")
    assert r"R\&D\_50\%" in body and r"MIM\_only {[}" in body


def test_markdown_and_html_escapes(made):
    """A title that is taken for markup, or that breaks a row of the table."""
    _, out, _ = made
    assert texts.plain("a|b *c* _d_ `e` [x](y) <b> &amp; R&D\n# f") == (
        r"a\|b \*c\* \_d\_ \`e\` [x]\(y) &lt;b> &amp;amp; R&D # f"
    )
    assert texts.plain("# x") == r"\# x"
    page = html_page(out)
    assert "<h1>Table 0: 100 % of $ &amp; _underscores_ | {braces}</h1>" in page
    assert "&lt; &gt; [brackets]" in page and "R&amp;D_50%" in page
    for line in (out / "0/table.md").read_text().splitlines():
        if line.startswith("| "):
            assert len(re.findall(r"(?<!\\)\|", line)) >= 3


def test_plots(made, corpora, tmp_path, monkeypatch):
    """A plot without intervals or the paper's points, a grid without its numbers, a stale plot."""
    _, out, results = made
    svg = draw(results["0"])
    (paper,) = [entry for entry in results["0"]["cells"] if place(entry) == ("whole", "paper")]
    assert paper["parts"]["overall"]["interval"] is not None
    assert svg.count('id="axes_') == 3  # questions twice, classes; the pool has no such part
    alone = (out / "0/figure.svg").read_text()
    assert "#0101" not in alone and "#0202" not in alone and "layer" in alone
    monkeypatch.chdir(tmp_path)
    plan = made_up.plan_in(tmp_path, corpora, kind="heat")
    made_up.finish(plan, tmp_path / "out")
    heat = collect(plan, tmp_path / "out")["0"]
    drawn = draw(heat)
    for entry in heat["cells"]:
        if entry["row"] in ("half", "whole") and entry["column"] == "questions":
            assert f"{100 * entry['parts']['overall']['mean']:.1f}" in drawn
    assert "(paper 60.3)" in drawn and "depth" in drawn
    write_pages({"0": heat}, tmp_path / "out")
    assert (tmp_path / "out/0/figure.svg").is_file()
    write_pages({"0": {**heat, "figure": None}}, tmp_path / "out")
    assert not (tmp_path / "out/0/figure.svg").exists()


def place(entry: dict) -> tuple[str, str]:
    column = entry["column"] == "questions"
    return (entry["row"], entry["protocol"]) if column else ("", "")


def test_nothing_run(corpora, tmp_path, monkeypatch):
    """A report of a fresh folder that fails, or that shows numbers."""
    monkeypatch.chdir(tmp_path)
    plan = made_up.plan_in(tmp_path, corpora)
    write_pages(collect(plan, tmp_path / "out"), tmp_path / "out")
    text = (tmp_path / "out/0/table.md").read_text()
    assert (
        text.count("[not run](#missing)") == 5 * (6 + 2 + 6) and "±" not in text.split("##", 1)[1]
    )
    assert "0 of 45 runs" in (tmp_path / "out/README.md").read_text()
    assert not (tmp_path / "out/0/figure.svg").exists()


def test_verdicts_in_words():
    """An index that counts orderings wrongly."""
    claims = [{"verdict": name} for name in ("holds", "holds", "not run", "does not hold")]
    assert verdicts(claims) == "2 hold, 1 does not hold, 1 not run"
    assert verdicts([]) == ""
