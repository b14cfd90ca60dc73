"""Pieces of the run report: files, numbers as text, tables, charts, pictures, the page around."""

import base64
import html
import io
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, PercentFormatter
from PIL import Image

from m3ae.command import exit_status, parser_for
from m3ae.files import escaped, one_line, read_json_object, read_text, write_text
from m3ae.strict_yaml import is_finite

NOT_MEASURED = "not measured"
LARGE_PICTURE = 1_000_000  # bytes above which a picture is inlined as JPEG

# matplotlib draws in stand-in colours, which become the page's variables: light and dark.
COLOURS = {name: f"#0101{number:02x}" for number, name in enumerate(("ink", "muted", "rule"), 1)}
SERIES = {name: f"#0202{number:02x}" for number, name in enumerate("abc", 1)}

SWATCH = (
    '<span><svg width="14" height="8" aria-hidden="true" style="display:inline"><line x2="14" '
    'y1="4" y2="4" stroke="var(--{})" stroke-width="2.5"/></svg> {}</span>'
)
STYLE = """
:root { color-scheme: light dark; --page: #fff; --ink: #1b1b1a; --muted: #62625e; --rule: #dcdcd6;
  --soft: #f5f5f2; --a: #2a6fc9; --b: #d9622b; --c: #8b8b85; }
@media screen and (prefers-color-scheme: dark) { :root { --page: #191918; --ink: #ececea;
  --muted: #a5a5a0; --rule: #3b3b38; --soft: #242422; --a: #5b9bea; --b: #e8814f; --c: #85857f; } }
@media print { :root { color-scheme: light; --ink: #000; --muted: #444; --rule: #ccc; --soft: #fff }
  section, figure, tr, .tile { break-inside: avoid; } section.long { break-inside: auto; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 58rem; margin: 0 auto; padding: 1.5rem 1rem 3rem; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .5rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .4rem; } h3 { font-size: 1rem; margin: 1.2rem 0 .4rem; }
p { margin: .4rem 0 .8rem; max-width: 46rem; } .note { color: var(--muted); font-size: .875rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .4rem .8rem .4rem 0; vertical-align: top;
  border-bottom: 1px solid var(--rule); }
thead th { font-size: .8125rem; font-weight: 600; color: var(--muted); vertical-align: bottom; }
tbody th { font-weight: 500; } small { font-weight: 400; color: var(--muted); font-size: .8125rem; }
.interval, .unit { white-space: nowrap; } .absent { color: var(--muted); font-style: italic; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: .6rem;
  margin: 1rem 0; }
.tile { background: var(--soft); border: 1px solid var(--rule); border-radius: 6px;
  padding: .5rem .7rem; }
.tile b { display: block; font-size: 1.1rem; font-weight: 600; }
.tile span { color: var(--muted); font-size: .8125rem; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(17rem, 1fr)); gap: 1rem;
  align-items: end; } .charts > figure { max-width: 34rem; }
figure { margin: 0; } figcaption { font-size: .875rem; font-weight: 600; }
.keys { font-size: .8125rem; font-weight: 400; color: var(--muted); }
.keys span { margin-right: .8rem; white-space: nowrap; }
.chart > svg { width: 100%; height: auto; display: block; }
.chart > svg text { font-family: inherit !important; }
.pictures { display: grid; gap: 1.2rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); }
.pictures img { width: 100%; height: auto; border: 1px solid var(--rule); margin-top: .3rem; }
.tag { border: 1px solid var(--b); color: var(--b); border-radius: 4px; padding: 0 .3rem;
  font-size: .75rem; } svg.arms { width: 290px; max-width: 100%; height: auto; display: block; }
details { border-top: 1px solid var(--rule); padding: .5rem 0; } summary { cursor: pointer; }
pre { overflow-x: auto; font-size: .8125rem; line-height: 1.4; } .facts td, .facts th {
  overflow-wrap: anywhere; font-size: .875rem; padding-top: .2rem; padding-bottom: .2rem; }
.facts th { width: 40%; } ul { padding-left: 1.2rem; }
.wide { overflow-x: auto; } .matrix th, .matrix td { font-size: .8125rem; padding: .2rem .5rem; }
.matrix td { text-align: right; } .matrix .cell { background: color-mix(in srgb,
  var(--a) calc(var(--share) * 60%), transparent); }
@media (max-width: 40rem) {
  table.stack, .stack tbody, .stack tr, .stack th, .stack td { display: block; border: 0; }
  .stack thead { display: none; } .stack tr { border-bottom: 1px solid var(--rule);
  padding: .6rem 0; } .stack tbody th { font-weight: 600; } .stack th, .stack td { padding: .1rem 0;
  } .stack td[data-label] { padding-left: 10.4rem; } .stack td[data-label]::before {
  content: attr(data-label); color: var(--muted); font-size: .875rem; display: inline-block;
  width: 10.4rem; margin-left: -10.4rem; } }
"""


def read_json(path: Path) -> dict:
    """A JSON object, {} where there is no file; ValueError names a corrupt one."""
    return read_json_object(path) if path.exists() else {}


def read_lines(path: Path) -> list[dict]:
    """Lines of a log; ValueError names the file and line that is corrupt."""
    if not path.exists():
        return []
    out = []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}, line {number}: not JSON ({error})") from error
        values = values if isinstance(values, dict) else {}
        needed = ("kind", "step", "samples") if values.get("kind") == "train" else ("kind", "step")
        if missing := [key for key in needed if key not in values]:
            raise ValueError(f"{path}, line {number}: no {', '.join(missing)}")
        if wrong := [key for key in needed[1:] if not is_number(values[key])]:
            raise ValueError(f"{path}, line {number}: {', '.join(wrong)} is no number")
        out.append(values)
    return out


def by_step(lines: list[dict], kind: str) -> list[dict]:
    """Lines of one kind in the order of steps, the last written of each."""
    chosen = {line["step"]: line for line in lines if line["kind"] == kind}
    return [chosen[step] for step in sorted(chosen)]


def is_number(value: object) -> bool:
    """True of a finite number; null, nan, text and booleans are not measurements."""
    return isinstance(value, int | float) and not isinstance(value, bool) and is_finite(value)


def percentage(value: object, signed: bool = False) -> str:
    """0.1234 -> "12.3 %"; with `signed`, a difference in points: "+12.3"."""
    if not is_number(value):
        return NOT_MEASURED
    text = f"{100 * value:{'+' if signed else ''}.1f}".replace("-", "−")
    return text if signed else f"{text} %"


def loss(value: object, signed: bool = False) -> str:
    """1.23456 -> "1.235"."""
    sign = "+" if signed else ""
    return f"{value:{sign}.3f}".replace("-", "−") if is_number(value) else NOT_MEASURED


def count(value: object) -> str:
    """1234567 -> "1,234,567"."""
    return f"{value:,.0f}" if is_number(value) else NOT_MEASURED


def short_count(value: float, _: object = None) -> str:
    """1234567 -> "1.23 M", also as an axis formatter."""
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def duration(seconds: object) -> str:
    """93784 -> "26.1 h"."""
    if not is_number(seconds):
        return NOT_MEASURED
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def with_interval(measure: object, is_loss: bool = False, gain: bool = False) -> str:
    """A measure {"value", "low", "high"} as HTML: value, then the interval in brackets."""
    measure = measure if isinstance(measure, dict) else {}
    show = loss if is_loss else percentage
    value = show(measure.get("value"), gain)
    if value == NOT_MEASURED:
        return absent()
    if gain and not is_loss:
        value += " points"
    ends = [measure.get("low"), measure.get("high")]
    if not all(map(is_number, ends)):
        return f'<span class="unit">{value}</span>'
    low, high = (show(end, gain).removesuffix(" %") for end in ends)
    return f'<span class="unit">{value}</span> <small class="interval">[{low}, {high}]</small>'


def verdict(gain: object, other: str) -> str:
    """What an interval of a gain says, in words."""
    gain = gain if isinstance(gain, dict) else {}
    if not all(is_number(gain.get(end)) for end in ("low", "high")):
        return NOT_MEASURED
    if gain["low"] > 0:
        return f"the {other} helps (the interval of the gain over none is above 0)"
    if gain["high"] < 0:
        return f"the {other} harms (the interval of the gain over none is below 0)"
    return f"no effect of the {other} is shown (the interval of the gain over none includes 0)"


def absent(text: str | None = None) -> str:
    """A number's text as HTML, set apart where it was not measured."""
    if text is None or text == NOT_MEASURED:
        return f'<span class="absent">{NOT_MEASURED}</span>'
    return html.escape(text)


def section(title: str, *parts: str, long: bool = False) -> str:
    """A titled section; `long` ones may break across printed pages."""
    mark = ' class="long"' if long else ""
    return f"<section{mark}><h2>{html.escape(title)}</h2>{''.join(parts)}</section>"


def paragraph(text: str, note: bool = False) -> str:
    """Plain text as a paragraph; a note is smaller."""
    mark = ' class="note"' if note else ""
    return f"<p{mark}>{html.escape(text)}</p>"


def bullets(texts: list[str]) -> str:
    """Plain texts as a list."""
    return f"<ul>{''.join(f'<li>{html.escape(text)}</li>' for text in texts)}</ul>"


def table(head: list[str], rows: list[list[str]]) -> str:
    """Columns' names as text, cells as HTML; on a phone each row becomes a block."""
    names = [html.escape(name) for name in head]
    out = ['<table class="stack"><thead><tr>', *(f'<th scope="col">{name}</th>' for name in names)]
    out.append("</tr></thead><tbody>")
    for first, *cells in rows:
        out.append(f'<tr><th scope="row">{first}</th>')
        for name, cell in zip(names[1:], cells, strict=True):
            # A cell with a chart needs the width that its label would take.
            label = "" if cell.startswith("<svg") else f' data-label="{name}"'
            out.append(f"<td{label}>{cell}</td>")
        out.append("</tr>")
    return "".join([*out, "</tbody></table>"])


def facts(values: dict[str, str]) -> str:
    """Names and values, both text, in two columns."""
    rows = (
        f'<tr><th scope="row">{html.escape(name)}</th><td>{html.escape(value)}</td></tr>'
        for name, value in values.items()
    )
    return f'<table class="facts"><tbody>{"".join(rows)}</tbody></table>'


def tiles(values: dict[str, str | None]) -> str:
    """Short figures side by side: name -> text, or None where it was not measured."""
    out = (
        f'<div class="tile"><b>{absent(text)}</b><span>{html.escape(name)}</span></div>'
        for name, text in values.items()
    )
    return f'<div class="tiles">{"".join(out)}</div>'


def details(title: str, content: str) -> str:
    """A part that opens on demand."""
    return f"<details><summary>{html.escape(title)}</summary>{content}</details>"


@dataclass
class Series:
    """A line of a chart; `colour` is a, b or c; nan in `y` is a gap."""

    label: str
    x: list[float]
    y: list[float]
    colour: str
    marked: bool = False


def chart(
    title: str,
    series: list[Series],
    as_percent: bool = False,
    from_zero: bool = False,
    over: str = "pairs seen",
) -> str:
    """A line chart over pairs seen, as inline SVG in the page's colours; "" without a value."""
    series = [line for line in series if any(map(is_number, line.y))]
    if not series:
        return ""
    settings = {"svg.fonttype": "none", "svg.hashsalt": title, "font.size": 9}
    settings |= dict.fromkeys(("text.color", "xtick.color", "ytick.color"), COLOURS["muted"])
    settings |= {"axes.labelcolor": COLOURS["muted"], "axes.edgecolor": COLOURS["rule"]}
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(4.2, 2.3), layout="constrained")
        axes = figure.add_subplot()
        for line in series:
            mark = {"marker": "o", "markersize": 3} if line.marked or len(line.x) == 1 else {}
            width = 1.8 if line.marked else 1.2
            axes.plot(line.x, line.y, color=SERIES[line.colour], linewidth=width, **mark)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color=COLOURS["rule"], linewidth=0.6)
        axes.tick_params(length=0)
        axes.xaxis.set_major_formatter(FuncFormatter(short_count))
        axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(5))
        axes.set_xlabel(over)
        if as_percent:
            axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None, symbol=" %"))
        if from_zero:
            axes.set_ylim(bottom=0)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    keys = "".join(SWATCH.format(s.colour, html.escape(s.label)) for s in series if s.label)
    caption = f'<figcaption>{html.escape(title)}<div class="keys">{keys}</div></figcaption>'
    return f'<figure class="chart">{caption}{inline_svg(file.getvalue(), title)}</figure>'


def inline_svg(text: str, title: str) -> str:
    """matplotlib's SVG file -> an element with ids of its own, free width and page colours."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, count=1, flags=re.DOTALL)
    for side in ("width", "height"):
        text = re.sub(rf'(<svg\b[^>]*?) {side}="[^"]*"', r"\1", text, count=1)
    # Ids hold for the whole page: two charts' clip paths must not be mistaken for each other.
    slug = re.sub(r"\W+", "-", title)
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{slug}-", text)
    for name, colour in (COLOURS | SERIES).items():
        text = text.replace(colour, f"var(--{name})")
    return text.replace("<svg", f'<svg role="img" aria-label="{html.escape(title)}"', 1)


def arm_bars(values: dict[str, object], majority: object) -> str:
    """Bars of accuracies 0-1, a row an arm, with the majority rate as a dashed line."""
    left, length, step, out = 66, 160, 18, ""
    for row, (name, value) in enumerate(values.items()):
        y = row * step
        out += f'<text x="0" y="{y + 13}" fill="var(--muted)">{html.escape(name)}</text>'
        if is_number(value):
            size = f'width="{max(1.0, length * min(1.0, value)):.1f}" height="12" rx="1.5"'
            out += f'<rect x="{left}" y="{y + 3}" {size} fill="var(--{"abc"[row % 3]})"/>'
        place = f'x="290" y="{y + 13}" text-anchor="end"'
        out += f'<text {place} fill="var(--ink)">{percentage(value)}</text>'
    height = len(values) * step
    if is_number(majority):
        x = left + length * majority
        dashed = 'stroke="var(--ink)" stroke-width="1.5" stroke-dasharray="3 2"'
        out += f'<line x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{height}" {dashed}/>'
    box = f'viewBox="0 0 290 {height}" font-size="12"'
    return f'<svg class="arms" {box} role="img" aria-label="accuracy by arm">{out}</svg>'


def picture(path: Path, caption: str) -> str:
    """A PNG file in the page itself; a large one as JPEG, which is several times smaller."""
    data, name = path.read_bytes(), html.escape(caption)
    source = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    if len(data) > LARGE_PICTURE:
        with Image.open(path) as image:
            source = jpeg(image.convert("RGB"))
    return f'<figure><figcaption>{name}</figcaption><img alt="{name}" src="{source}"></figure>'


def jpeg(image: Image.Image) -> str:
    """The address of an image in the page itself, as a JPEG."""
    file = io.BytesIO()
    image.save(file, format="JPEG", quality=90)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def page(title: str, body: str) -> str:
    """A whole HTML page that needs no other file."""
    return escaped(
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head>"
        f"<body><main>{body}</main></body></html>\n"
    )


def write_page(contents: Any, sections: Iterable[Callable[[Any], str]]) -> Path:
    """`report.html` of a run's contents (with `folder` and `name`), from its sections.

    ValueError where its files are not what they should be.
    """
    path = contents.folder / "report.html"
    try:
        body = "".join(section(contents) for section in sections)
    except (LookupError, TypeError, AttributeError, OverflowError) as error:
        wrong = f"not the files of a run, or damaged ({one_line(repr(error))})"
        raise ValueError(f"{contents.folder}: {wrong}") from error
    write_text(path, page(contents.name, body))
    return path


def command(text: str, write: Callable[[Path], Path], arguments: Sequence[str] | None) -> int:
    """The command that writes the report of a run folder again; 2 if it cannot be read."""
    parser = parser_for(text)
    parser.add_argument("run", type=Path, help="run folder")
    run = parser.parse_args(arguments).run
    return exit_status(lambda: print(write(run)), mistake=2)
