"""Sheets of `tables_layout` as Markdown, HTML, LaTeX; the numbers as CSV."""

import csv
import html
import io
import re
import unicodedata
from collections.abc import Sequence
from typing import Any

from m3ae.reports.tables_layout import Cell, Sheet

# ---------------------------------------------------------------------------- Markdown


def plain(value: str) -> str:
    """Text that Markdown takes as it stands, in a cell too."""
    value = " ".join(value.split()).replace("\\", "\\\\")
    value = re.sub(r"&(?=#?\w+;)", "&amp;", value).replace("<", "&lt;")
    value = re.sub(r"([|*_`~])", r"\\\1", value)
    return re.sub(r"^([#>+-])|(?<=\])\(", r"\\\g<0>", value)


def markdown_cell(cell: Cell, kind: str = "ours") -> str:
    """The pieces of a cell, small ones on lines of their own."""
    out = ""
    for number, piece in enumerate(cell):
        shown = plain(piece.text)
        if piece.link:
            shown = re.sub(r"([\[\]])", r"\\\1", shown)
            shown = f"[{shown}]({piece.link.replace(' ', '%20')})"
        if piece.anchor:
            shown = f'<a id="{piece.anchor}"></a>{shown}'
        if piece.style in ("good", "bad"):
            shown = f"**{shown}**"
        elif kind != "ours" and not piece.small and shown:
            shown = f"*{shown}*"
        out += ("<br>" if piece.small and number else " " if number else "") + shown
    return out.replace("  ", " ")


def markdown(sheet: Sheet) -> str:
    """A table with its title."""
    spans = [title for title, width in sheet.groups for _ in range(width)]
    names = [plain(name) for name in sheet.head]
    if spans:
        names[1:] = [f"{plain(t)}: {name}" for t, name in zip(spans, names[1:], strict=True)]
    rows = [names, ["---"] * len(names)]
    rows += [[markdown_cell(cell, line.kind) for cell in line.cells] for line in sheet.lines]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    note = f"\n{plain(sheet.note)}\n" if sheet.note else ""
    return f"## {plain(sheet.title)}\n\n{table}\n{note}"


# ---------------------------------------------------------------------------- HTML

STYLE = """<style>
main { max-width: 76rem; } .wide { overflow-x: auto; } .sheet { width: auto; }
.sheet tbody th { min-width: 9rem; }
.sheet td, .sheet th { padding-right: 1.1rem; } .sheet thead th { white-space: normal; }
.sheet .group { border-bottom: 1px solid var(--muted); } .sheet small { display: block; }
.sheet a, .links a { color: inherit; text-decoration: underline; text-decoration-thickness: 1px;
  text-decoration-color: var(--muted); text-underline-offset: 3px; }
.sheet a:hover, .links a:hover { color: var(--a); }
.paper > *, .other > * { color: var(--muted); font-style: italic; }
.paper > th { padding-left: 1.2rem; } .paper small, .other small { font-style: normal; }
.muted { color: var(--muted); } .good { color: var(--a); font-weight: 600; }
.bad { color: var(--b); font-weight: 600; } :target { background: var(--soft); }
.plot { max-width: 54rem; } .plot > svg { width: 100%; height: auto; display: block; }
</style>"""


def html_cell(cell: Cell) -> str:
    """The pieces of a cell, small ones on lines of their own."""
    lines: list[str] = []
    for piece in cell:
        shown = html.escape(piece.text)
        if piece.link:
            shown = f'<a href="{html.escape(piece.link)}">{shown}</a>'
        if piece.anchor:
            shown = f'<span id="{html.escape(piece.anchor)}">{shown}</span>'
        if piece.style:
            shown = f'<span class="{piece.style}">{shown}</span>'
        if piece.small or not lines:
            lines.append(shown)
        else:
            lines[-1] += f" {shown}"
    return "".join([*lines[:1], *(f"<small>{line}</small>" for line in lines[1:])])


def html_table(sheet: Sheet) -> str:
    """A table in a frame that scrolls where the page is narrower."""
    out = ['<div class="wide"><table class="sheet"><thead>']
    if sheet.groups:
        spans = "".join(
            f'<th class="group" scope="colgroup" colspan="{width}">{html.escape(title)}</th>'
            for title, width in sheet.groups
        )
        out.append(f"<tr><td></td>{spans}</tr>")
    names = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in sheet.head)
    out.append(f"<tr>{names}</tr></thead><tbody>")
    for line in sheet.lines:
        first, *rest = (html_cell(cell) for cell in line.cells)
        cells = "".join(f"<td>{cell}</td>" for cell in rest)
        out.append(f'<tr class="{line.kind}"><th scope="row">{first}</th>{cells}</tr>')
    return "".join([*out, "</tbody></table></div>"])


# ---------------------------------------------------------------------------- LaTeX

_TEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    "±": r"$\pm$",
    "−": "$-$",
    "→": r"$\rightarrow$",
    "≥": r"$\geq$",
    "≤": r"$\leq$",
    "×": r"$\times$",
    "–": "--",
    "—": "---",
    "’": "'",
    "‘": "`",
    "“": "``",
    "”": "''",
    "[": "{[}",  # after \\ a bracket would be an argument
    "]": "{]}",
}
_TEX |= {letter: "\\" + letter for letter in "&%$#_"}
END = r"\tabularnewline"
TEX_HEAD = r"""% Written by run_tables.py. In the preamble: \usepackage{booktabs,longtable}
% \documentclass{article} \usepackage{booktabs,longtable}
% \begin{document} \input{table} \end{document}
"""


def tex(value: str) -> str:
    """Text as LaTeX prints it; letters beyond Latin ones lose their marks, or become ?."""
    out = []
    for letter in " ".join(value.split()):
        if letter in _TEX:
            out.append(_TEX[letter])
        elif letter.isascii() or "À" <= letter <= "ſ":
            out.append(letter)
        else:
            bare = unicodedata.normalize("NFKD", letter).replace("\N{FRACTION SLASH}", "/")
            bare = bare.encode("ascii", "ignore").decode()
            out.append("".join(_TEX.get(one, one) for one in bare) or "?")
    return "".join(out)


def latex(sheet: Sheet, widths: Sequence[float] = ()) -> str:
    """A longtable; widths: of the columns, parts of the line."""
    others = len(sheet.head) - 1
    widths = widths or [0.2, *[0.68 / others] * others]
    shape = "".join(rf"p{{{width:.3f}\linewidth}}" for width in widths)
    out = [r"{\scriptsize\setlength{\tabcolsep}{3pt}", rf"\begin{{longtable}}{{@{{}}{shape}@{{}}}}"]
    out += [rf"\caption{{{tex(sheet.title)}}}{END}", r"\toprule"]
    if sheet.groups:
        spans, rules, at = [], [], 2
        for title, count in sheet.groups:
            inside = rf"p{{{sum(widths[at - 1 : at - 1 + count]):.3f}\linewidth}}"
            spans.append(rf"\multicolumn{{{count}}}{{{inside}}}{{\raggedright {tex(title)}}}")
            rules.append(rf"\cmidrule(lr){{{at}-{at + count - 1}}}")
            at += count
        out += [f" & {' & '.join(spans)} {END}", "".join(rules)]
    heads = [rf"\raggedright {tex(name)}" if name else "" for name in sheet.head]
    out += [f"{' & '.join(heads)} {END}", r"\midrule", r"\endhead"]
    for line in sheet.lines:
        first, *rest = (tex_cell(cell, line.kind) for cell in line.cells)
        first = rf"\hspace{{1em}}{first}" if line.kind == "paper" else first
        out.append(f"{' & '.join([first, *rest])} {END}[2pt]")
    return "\n".join([*out, r"\bottomrule", r"\end{longtable}}", ""])


def tex_cell(cell: Cell, kind: str) -> str:
    """The pieces of a cell, small ones on lines of their own."""
    out = ""
    for piece in cell:
        shown = tex(piece.text)
        if piece.small:
            out += rf"\newline {{\tiny {shown}}}"
        else:
            out += rf" \textit{{{shown}}}" if kind != "ours" else f" {shown}"
    return rf"\raggedright{out}" if out else ""


# ---------------------------------------------------------------------------- CSV

COLUMNS = "table,row,column,protocol,part,kind,mean,sd,low,high,n,questions,images,source".split(
    ","
)


def csv_text(result: dict[str, Any]) -> str:
    """Every number of a table, one a line; fractions. kind: own, an arm, own - arm, published."""
    rows: list[dict[str, Any]] = []
    for entry in result["cells"]:
        place = {key: entry[key] for key in ("row", "column", "protocol")}
        place["source"] = " ".join(source["predictions"] for source in entry["sources"])
        for part, figures in entry["parts"].items():
            about = {**place, "part": part, "n": entry["runs"]}
            about |= {key: figures[key] for key in ("questions", "images") if key in figures}
            rows.append(_csv_row(about, "own", figures["mean"], figures["interval"], figures["sd"]))
            for name, side in figures["sides"].items():
                rows.append(_csv_row(about, name, side["mean"], side["interval"], side["sd"]))
                ends = side["difference_interval"]
                rows.append(_csv_row(about, f"own - {name}", side["difference"], ends))
    for one in result["published"]:
        place = {key: one[key] for key in ("column", "protocol", "questions", "source")}
        place["row"] = one["name"] or one["row"]
        for part, value in one["values"].items():
            rows.append(_csv_row({**place, "part": part}, "published", value))
            if part in one["compared"]:
                difference = one["compared"][part]["difference"]
                rows.append(_csv_row({**place, "part": part}, "own - published", difference))
    for claim in result["claims"]:
        place = {key: claim[key] for key in ("column", "protocol", "part", "source")}
        place |= {"row": f"{claim['above']} - {claim['below']}", "n": claim["runs"]}
        kind = f"ordering: {claim['verdict']}"
        rows.append(_csv_row(place, kind, claim["difference"], claim["interval"]))
    file = io.StringIO()
    writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({"table": result["name"], **row} for row in rows)
    return file.getvalue()


def _csv_row(
    about: dict[str, Any],
    kind: str,
    mean: float | None,
    ends: Sequence[float] | None = None,
    sd: float | None = None,
) -> dict[str, Any]:
    low, high = ends or (None, None)
    return {**about, "kind": kind, "mean": mean, "sd": sd, "low": low, "high": high}
