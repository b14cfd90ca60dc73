"""Pages of tables: Markdown, HTML, LaTeX, CSV, plots, from the results of `run_tables.py`."""

import html
from pathlib import Path
from typing import Any

from m3ae.files import write_json, write_text
from m3ae.reports import parts, tables_figure
from m3ae.reports import tables_layout as layout
from m3ae.reports import tables_text as texts
from m3ae.reports.differences import differing, sheet
from m3ae.reports.tables_layout import Line, Piece, Sheet
from m3ae.scoring.predictions import Row, complete, read_predictions

RULE = "the first {} of each kind, in the order of the test set, of the first seed that both have"
WIDTHS = (0.3, 0.2, 0.25, 0.2)  # of the orderings in LaTeX


def write_pages(results: dict[str, dict[str, Any]], out: Path) -> None:
    """Write OUT/NAME/{result.json, table.md, .html, .tex, .csv, figure.svg} and OUT's index.

    The pages follow from `results` alone; sheets of differing questions read the predictions in
    OUT that it names, and take pictures from the prepared split, where it is there.
    """
    for name, result in results.items():
        folder = out / name
        folder.mkdir(parents=True, exist_ok=True)
        drawn = tables_figure.draw(result)
        pictures = picture_sheets(result, out, folder)
        write_json(folder / "result.json", result)
        write_text(folder / "table.md", markdown_page(result, drawn is not None, pictures))
        write_text(folder / "table.html", html_page(result, drawn, pictures))
        write_text(folder / "table.tex", latex_page(result))
        write_text(folder / "table.csv", texts.csv_text(result))
        if drawn is None:
            (folder / "figure.svg").unlink(missing_ok=True)
        else:
            write_text(folder / "figure.svg", tables_figure.alone(drawn))
    write_text(out / "README.md", markdown_index(results))
    write_text(out / "index.html", html_index(results))


def sheets_of(result: dict[str, Any]) -> list[Sheet]:
    """Every table of a page, in its order, but those without a line."""
    sheets = [*layout.main_sheets(result), layout.claim_sheet(result)]
    sheets += [*layout.side_sheets(result), *layout.published_sheets(result)]
    sheets += [layout.missing_sheet(result), layout.runs_sheet(result)]
    return [one for one in sheets if one.lines]


def config_of(about: dict[str, Any], base: str) -> list[str]:
    """What a row's pre-training has other than the size's."""
    if about["config"] is None:
        longer = ", and as many steps in all" if about["steps"] == "all" else ""
        return [f"no pre-training: the weights that {base} would begin with{longer}"]
    return about["config"] or [f"{base} itself"]


def picture_sheets(result: dict[str, Any], out: Path, folder: Path) -> list[Piece]:
    """Write the sheets of questions on which two rows differ; links to them."""
    about, links = result["differences"], []
    if about is None:
        return []
    names = tuple(result["rows"][about[side]]["title"] for side in ("here", "there"))
    for one in about["sheets"]:
        sides = [read_rows(out / one[side], about["part"]) for side in ("here", "there")]
        found = differing(*sides, one["protocol"], about["most"])
        data = Path(one["data"])
        page = sheet(found, data if data.is_dir() else None, names)
        file = f"differences-{one['column']}-{one['protocol']}.html"
        write_text(folder / file, page)
        column = result["columns"][one["column"]]["title"]
        counts = ", ".join(f"{kind} {count}" for kind, count in found["counts"].items())
        title = f"{column}, {one['protocol']}, seed {one['seed']} ({counts})"
        links.append(Piece(title, link=file))
    for one in about["missing"]:
        column = result["columns"][one["column"]]["title"]
        links.append(Piece(f"{column}, {one['protocol']}: missing: {one['why']}"))
    return links


def read_rows(path: Path, part: str) -> list[Row]:
    """Rows of a prediction file that belong to a part."""
    rows = complete(read_predictions(path), str(path))
    return [row for row in rows if part in ("overall", "accuracy", row.get("type"))]


def rule_of(result: dict[str, Any]) -> str:
    """How the questions of the picture sheets are chosen."""
    about = result["differences"]
    here, there = (result["rows"][about[side]]["title"] for side in ("here", "there"))
    kinds = "right here and wrong there, the other way round, wrong in both with other answers"
    chosen = RULE.format(about["most"])
    return f"Here: {here}; there: {there}. Kinds: {kinds}. Shown: {chosen}."


# ---------------------------------------------------------------------------- a table's pages


def markdown_page(result: dict[str, Any], drawn: bool, pictures: list[Piece]) -> str:
    """table.md"""
    out = [f"# {texts.plain(result['title'])}\n"]
    out += [f"{texts.plain(words)}\n" for words in layout.introduction(result)]
    out.append("[HTML](table.html), [LaTeX](table.tex), [CSV](table.csv), [JSON](result.json)\n")
    if drawn:
        out.append("![figure](figure.svg)\n")
    if result["differences"]:
        shown = [f"- {texts.markdown_cell([piece])}\n" for piece in pictures]
        out += ["## Where two rows differ\n", texts.plain(rule_of(result)) + "\n", "".join(shown)]
    for one in sheets_of(result):
        mark = f'<a id="{layout.anchor("missing")}"></a>\n\n' if one.title == "Missing" else ""
        out.append(mark + texts.markdown(one))
    out.append("## Configurations\n")
    base = result["size"]["pretrain"]
    for row, about in result["rows"].items():
        mark = f'<a id="{layout.anchor("config", row)}"></a>'
        out.append(f"{mark}**{texts.plain(about['title'])}**\n")
        out.append("".join(f"- `{change}`\n" for change in config_of(about, base)))
    return "\n".join(out)


def html_page(result: dict[str, Any], drawn: str | None, pictures: list[Piece]) -> str:
    """table.html"""
    body = [texts.STYLE, f"<h1>{html.escape(result['title'])}</h1>"]
    first, *rest = layout.introduction(result)
    body += [parts.paragraph(first), *(parts.paragraph(words, note=True) for words in rest)]
    files = {"Markdown": "table.md", "LaTeX": "table.tex", "CSV": "table.csv"}
    files |= {"JSON": "result.json", "all tables": "../index.html"}
    links = ", ".join(f'<a href="{file}">{name}</a>' for name, file in files.items())
    body.append(f'<p class="note links">{links}</p>')
    if drawn is not None:
        keys = html.escape("percent; the darker, the higher")
        if result["figure"]["kind"] == "line":
            named = {"a": "ours, with 95 % interval"}
            if any(one["shown"] for one in result["published"]):
                named["b"] = "published"
            keys = "".join(parts.SWATCH.format(*item) for item in named.items())
        picture = parts.inline_svg(drawn, result["name"])
        body.append(f'<figure class="plot"><div class="keys">{keys}</div>{picture}</figure>')
    if result["differences"]:
        items = "".join(f"<li>{texts.html_cell([piece])}</li>" for piece in pictures)
        listed = f'<ul class="links">{items}</ul>'
        about = parts.paragraph(rule_of(result))
        body.append(parts.section("Where two rows differ", about, listed))
    for one in sheets_of(result):
        mark = f'<a id="{layout.anchor("missing")}"></a>' if one.title == "Missing" else ""
        note = parts.paragraph(one.note, note=True) if one.note else ""
        body.append(mark + parts.section(one.title, texts.html_table(one), note, long=True))
    configs, base = [], result["size"]["pretrain"]
    for row, about in result["rows"].items():
        mark = html.escape(layout.anchor("config", row))
        changes = parts.bullets(config_of(about, base))
        configs.append(f'<div id="{mark}"><b>{html.escape(about["title"])}</b>{changes}</div>')
    body.append(parts.section("Configurations", *configs, long=True))
    return parts.page(result["title"], "".join(body))


def latex_page(result: dict[str, Any]) -> str:
    """table.tex: the numbers, the orderings, arms and blind baselines."""
    out = [texts.TEX_HEAD, *(texts.latex(one) for one in layout.main_sheets(result))]
    if result["claims"]:
        out.append(texts.latex(layout.claim_sheet(result), WIDTHS))
    out += [texts.latex(one) for one in layout.side_sheets(result)]
    return "\n".join(out)


# ---------------------------------------------------------------------------- all tables


def index_sheets(results: dict[str, dict[str, Any]], page: str) -> list[Sheet]:
    """The tables with how they stand, and what is missing; page: the kind of file to link."""
    lines, missing = [], []
    for name, result in results.items():
        title = [Piece(result["title"], link=f"{name}/table.{page}")]
        files = ("table.md", "table.html", "table.tex", "table.csv", "result.json")
        links = [Piece(file.rpartition(".")[2], link=f"{name}/{file}") for file in files]
        verdicts = layout.verdicts(result["claims"]) or "none stated"
        told = [layout.text(layout.standing(result)), layout.text(verdicts)]
        lines.append(Line("ours", [title, *told, links]))
        for why, some in layout.missing_of(result).items():
            missing.append(Line("ours", [layout.text(name), layout.text(why), layout.text(*some)]))
    sheets = [Sheet("Tables", ["", "finished", "orderings", "files"], lines)]
    return sheets + ([Sheet("Missing", ["table", "why", "what"], missing)] if missing else [])


def index_text(results: dict[str, dict[str, Any]]) -> str:
    """One sentence on the size."""
    size = next(iter(results.values()))["size"] if results else None
    return f"Size {size['name']}: {size['title']}." if size else "No table."


def markdown_index(results: dict[str, dict[str, Any]]) -> str:
    """README.md"""
    sheets = [texts.markdown(one) for one in index_sheets(results, "md")]
    return "\n".join(["# Tables\n", f"{texts.plain(index_text(results))}\n", *sheets])


def html_index(results: dict[str, dict[str, Any]]) -> str:
    """index.html"""
    body = [texts.STYLE, "<h1>Tables</h1>", parts.paragraph(index_text(results))]
    for one in index_sheets(results, "html"):
        body.append(parts.section(one.title, texts.html_table(one), long=True))
    return parts.page("Tables", "".join(body))
