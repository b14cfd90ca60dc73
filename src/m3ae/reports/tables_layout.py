"""What a page of a table says, as sheets of cells, whatever it is written in."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

MOST = 6  # numbers beside one another
PARTS = {"macro_f1": "macro-F1"} | {
    f"{way}_r{k}": f"{title} R@{k}"
    for way, title in (("t2i", "text to image"), ("i2t", "image to text"))
    for k in (1, 5, 10)
}
SIDES = {
    "other": "another's image",
    "none": "the mean image",
    "blind majority": "blind: majority of a type",
    "blind nearest": "blind: nearest question",
}
STYLES = {"holds": "good", "does not hold": "bad", "not shown": "", "not run": "muted"}


class Piece(NamedTuple):
    """Text of a cell. style: muted, good, bad; small: on a line of its own."""

    text: str
    style: str = ""
    link: str = ""
    anchor: str = ""
    small: bool = False


Cell = list[Piece]


class Line(NamedTuple):
    """A row: ours, the paper's number for the one above, or another's."""

    kind: str
    cells: list[Cell]


class Sheet(NamedTuple):
    """A table with its title; groups: what spans several of its columns, with how many."""

    title: str
    head: list[str]
    lines: list[Line]
    groups: Sequence[tuple[str, int]] = ()
    note: str = ""


def text(*words: str, style: str = "") -> Cell:
    """A cell of plain text; further texts are small ones."""
    return [Piece(word, style, small=number > 0) for number, word in enumerate(words)]


def number(value: float | None, sign: str = "") -> str:
    """A fraction as a percentage with one digit."""
    return "-" if value is None else f"{100 * value:{sign}.1f}".replace("-", "−")


def ends(interval: Sequence[float] | None, sign: str = "") -> str:
    """An interval in brackets, or why there is none."""
    if interval is None:
        return "no interval"
    return whole(f"[{number(interval[0], sign)}, {number(interval[1], sign)}]")


def whole(words: str) -> str:
    """Words that stay on one line."""
    return words.replace(" ", "\N{NO-BREAK SPACE}")


def part_title(part: str) -> str:
    """How a part is called."""
    return PARTS.get(part, part)


def place_of(entry: dict[str, Any]) -> tuple[str, str, str]:
    """Row, column and protocol of an entry."""
    return entry["row"], entry["column"], entry["protocol"]


def entries_of(result: dict[str, Any]) -> dict[tuple[str, str, str], dict[str, Any]]:
    """Our cells by row, column and protocol."""
    return {place_of(entry): entry for entry in result["cells"]}


def anchor(kind: str, *names: str) -> str:
    """Where a link within the page leads."""
    return "-".join([kind, *names]).replace(" ", "_")


def main_sheets(result: dict[str, Any]) -> list[Sheet]:
    """Rows by columns, at most `MOST` numbers wide, our rows with the published ones."""
    units: list[list[tuple[str, str, str]]] = []
    for column, about in result["columns"].items():
        heads = [
            [(column, protocol, part) for part in about["parts"]] for protocol in about["protocols"]
        ]
        together = [head for some in heads for head in some]
        units += [together] if len(together) <= MOST else heads
    sheets: list[list[tuple[str, str, str]]] = []
    for unit in units:
        if sheets and len(sheets[-1]) + len(unit) <= MOST:
            sheets[-1] += unit
        else:
            sheets.append(list(unit))
    return [_main_sheet(result, heads) for heads in sheets]


def _main_sheet(result: dict[str, Any], heads: list[tuple[str, str, str]]) -> Sheet:
    ours = entries_of(result)
    groups: list[tuple[str, int]] = []
    names = [""]
    for column, protocol, part in heads:
        title = f"{result['columns'][column]['title']}, {protocol}"
        if groups and groups[-1][0] == title:
            groups[-1] = (title, groups[-1][1] + 1)
        else:
            groups.append((title, 1))
        sizes = (ours[row, column, protocol]["parts"].get(part) for row in result["rows"])
        size = next((figures["questions"] for figures in sizes if figures), None)
        names.append(part_title(part) + (f" ({size:,})" if size is not None else ""))
    lines = []
    for row, about in result["rows"].items():
        title = [Piece(about["title"], link=f"#{anchor('config', row)}")]
        lines.append(Line("ours", [title, *(_ours(ours, row, *head) for head in heads)]))
        lines += _published_lines(result, row, heads)
    lines += _published_lines(result, None, heads)
    columns = {column: None for column, *_ in heads}
    return Sheet(", ".join(result["columns"][c]["title"] for c in columns), names, lines, groups)


def _ours(ours: dict[Any, dict[str, Any]], row: str, column: str, protocol: str, part: str) -> Cell:
    entry = ours[row, column, protocol]
    if not entry["parts"]:
        return [Piece("not run", "muted", link=f"#{anchor('missing')}")]
    figures = entry["parts"][part]
    if figures["mean"] is None:
        return text("no question", style="muted")
    sd = "" if figures["sd"] is None else f" ± {number(figures['sd'])}"
    link = f"#{anchor('runs', row, column, protocol)}"
    runs = f"n = {entry['runs']}" + (f" of {entry['of']}" if entry["runs"] < entry["of"] else "")
    interval = Piece(f"{ends(figures['interval'])}, {whole(runs)}", small=True)
    return [Piece(whole(number(figures["mean"]) + sd), link=link), interval]


def _published_lines(
    result: dict[str, Any], row: str | None, heads: list[tuple[str, str, str]]
) -> list[Line]:
    """The published numbers of a row of ours, or of all others; a line a name."""
    named: dict[str, dict[tuple[str, str, str], Cell]] = {}
    for one in result["published"]:
        if one["row"] != row:
            continue
        for part, value in one["values"].items():
            place = (one["column"], one["protocol"], part)
            if place in heads:
                cell = [Piece(as_published(value))]
                if part in one["compared"]:
                    cell.append(Piece(_compared(one["compared"][part]), small=True))
                named.setdefault(one["name"] or "published", {})[place] = cell
    return [
        Line("other" if row is None else "paper", [text(name), *(c.get(h, []) for h in heads)])
        for name, c in named.items()
    ]


def as_published(value: float) -> str:
    """A published fraction as percentage, with the digits that it has, one at least."""
    shown = f"{100 * value:.4f}".rstrip("0")
    return shown + "0" if shown.endswith(".") else shown


def _compared(compared: dict[str, Any]) -> str:
    inside = {True: "inside", False: "outside", None: "no interval"}
    return f"ours {number(compared['difference'], '+')}, {inside[compared['inside']]}"


def claim_sheet(result: dict[str, Any]) -> Sheet:
    """Orderings that the paper states, and what our runs say of each."""
    lines = []
    for claim in result["claims"]:
        above, below = (result["rows"][claim[side]]["title"] for side in ("above", "below"))
        column = result["columns"][claim["column"]]["title"]
        difference: Cell = text("-", style="muted")
        if claim["difference"] is not None:
            told = [ends(claim["interval"], "+"), whole(f"n = {claim['runs']}")]
            told += [] if claim["p"] is None else [whole(f"p = {claim['p']:.3g}")]
            difference = text(number(claim["difference"], "+"), ", ".join(told))
        verdict = [
            Piece(claim["verdict"], STYLES[claim["verdict"]]),
            Piece(claim["why"], small=True),
        ]
        where = text(f"{column}, {claim['protocol']}", part_title(claim["part"]))
        what = text(f"{above} above {below}", claim["source"])
        lines.append(Line("ours", [what, where, difference, verdict]))
    return Sheet("Orderings", ["stated", "on", "difference", "our runs"], lines)


def side_sheets(result: dict[str, Any]) -> list[Sheet]:
    """Own image, another's, none, and blind baselines, of questions and of classes."""
    sheets = []
    for column, about in result["columns"].items():
        part = "accuracy" if about["task"] == "classification" else "overall"
        for protocol in about["protocols"]:
            some = [e for e in result["cells"] if place_of(e)[1:] == (column, protocol)]
            some = [entry for entry in some if entry["parts"] and about["task"] != "retrieval"]
            names = list(dict.fromkeys(n for e in some for n in e["parts"][part]["sides"]))
            if not names:
                continue
            lines = []
            for entry in some:
                figures = entry["parts"][part]
                cells = [text(result["rows"][entry["row"]]["title"]), _mean(figures)]
                cells += [_side(figures["sides"].get(name)) for name in names]
                lines.append(Line("ours", cells))
            head = ["", "own image", *(SIDES.get(name, name) for name in names)]
            notes = dict.fromkeys(note for entry in some for note in entry["notes"])
            title = f"Is the image used? {about['title']}, {protocol}, {part}"
            sheets.append(Sheet(title, head, lines, note=" ".join(f"{note}." for note in notes)))
    return sheets


def _mean(figures: dict[str, Any]) -> Cell:
    return text(number(figures["mean"]), ends(figures["interval"]))


def _side(figures: dict[str, Any] | None) -> Cell:
    if figures is None or figures["mean"] is None:
        return text("-", style="muted")
    interval = figures["difference_interval"]
    gain = f"own {number(figures['difference'], '+')} {ends(interval, '+') if interval else ''}"
    return text(number(figures["mean"]), gain.strip())


def published_sheets(result: dict[str, Any]) -> list[Sheet]:
    """Published numbers with source and how they were got; those of other data apart."""
    sheets = []
    for shown, title in ((True, "Published numbers"), (False, "Published, on other data")):
        lines = []
        for one in result["published"]:
            if one["shown"] is not shown:
                continue
            who = one["name"] or result["rows"][one["row"]]["title"]
            column = result["columns"].get(one["column"], {}).get("title", one["column"])
            size = [f"{one['questions']:,} questions"] if one["questions"] else []
            values = text(*(f"{part_title(p)} {as_published(v)}" for p, v in one["values"].items()))
            values = [piece._replace(small=k > 0) for k, piece in enumerate(values)]
            values += [
                Piece(f"{part_title(part)}: {_compared(compared)}", small=True)
                for part, compared in one["compared"].items()
            ]
            source = text(one["source"], *([one["how"]] if one["how"] else []))
            where = text(f"{column}, {one['protocol']}", *size)
            lines.append(Line("ours", [text(who), where, values, source]))
        note = "" if shown else "Not comparable with the columns above."
        head = ["", "on", "percent", "source, and how it was got"]
        sheets += [Sheet(title, head, lines, note=note)] if lines else []
    return sheets


def missing_of(result: dict[str, Any]) -> dict[str, list[str]]:
    """What is not finished, as texts by the reason; protocols share their runs."""
    seeds: dict[tuple[str, str, str], dict[int, None]] = {}
    for entry in result["cells"]:
        for one in entry["missing"]:
            place = (one["why"], entry["row"], entry["column"])
            seeds.setdefault(place, {})[one["seed"]] = None
    columns: dict[tuple[str, str, tuple[int, ...]], list[str]] = {}
    for (why, row, column), some in seeds.items():
        columns.setdefault((why, row, tuple(some)), []).append(column)
    found: dict[str, list[str]] = {}
    for (why, row, some), names in columns.items():
        title = result["rows"][row]["title"]
        where = "all columns" if len(names) == len(result["columns"]) else ", ".join(names)
        all_seeds = len(some) == result["seeds"]
        which = "all seeds" if all_seeds else f"seed {', '.join(map(str, some))}"
        found.setdefault(why, []).append(f"{title}: {where}, {which}")
    return found


def missing_sheet(result: dict[str, Any]) -> Sheet:
    """What is not finished and why."""
    lines = [Line("ours", [text(why), text(*some)]) for why, some in missing_of(result).items()]
    return Sheet("Missing", ["why", "what"], lines)


def runs_sheet(result: dict[str, Any]) -> Sheet:
    """Of each cell, by seed, its run folder, predictions and steps; a link to its config."""
    lines = []
    for entry in result["cells"]:
        if not entry["sources"]:
            continue
        row, column, protocol = place_of(entry)
        part = next(iter(entry["parts"]))
        values = entry["parts"][part]["values"]
        title = [
            Piece(result["rows"][row]["title"], anchor=anchor("runs", row, column, protocol)),
            Piece("config", link=f"#{anchor('config', row)}", small=True),
        ]
        where = text(f"{result['columns'][column]['title']}, {protocol}")
        steps = [text(_range(entry["steps"][kind])) for kind in ("pretraining", "finetuning")]
        links: Cell = text(f"{part_title(part)} by seed")
        for source in entry["sources"]:
            value = number(values.get(str(source["seed"])))
            links.append(Piece(f"{source['seed']}: {value}", small=True))
            paths = {"run": source["run"], "pre-training": source["pretraining"]}
            paths |= {"predictions": source["predictions"], **source["arms"]}
            links += [Piece(name, link=f"../{path}") for name, path in paths.items() if path]
        lines.append(Line("ours", [title, where, *steps, links]))
    head = ["row", "column", "steps of pre-training", "of fine-tuning", "runs"]
    return Sheet("Runs", head, lines)


def _range(steps: Sequence[int]) -> str:
    return (
        "not known"
        if not steps
        else " to ".join(f"{k:,}" for k in sorted({min(steps), max(steps)}))
    )


def standing(result: dict[str, Any]) -> str:
    """How many runs are finished."""
    runs = {(e["row"], e["column"]): (e["runs"], e["of"]) for e in result["cells"]}
    done, of = (sum(counts) for counts in zip(*runs.values(), strict=True))
    return f"{done} of {of} runs"


def verdicts(claims: Iterable[dict[str, Any]]) -> str:
    """How many orderings hold, do not, or cannot be told."""
    found: dict[str, int] = dict.fromkeys(STYLES, 0)
    for claim in claims:
        found[claim["verdict"]] += 1
    words = {"holds": "hold", "does not hold": "do not hold"}
    told = (f"{n} {words.get(v, v) if n > 1 else v}" for v, n in found.items() if n)
    return ", ".join(told)


def introduction(result: dict[str, Any]) -> list[str]:
    """What the page shows, in sentences."""
    size = result["size"]
    told = [f"Source: {result['source']}.", f"Size {size['name']}: {size['title']}."]
    told.append(f"{standing(result)} are finished, {result['seeds']} seeds a cell.")
    reading = (
        "Percent: mean over seeds ± standard deviation over seeds, [95 % interval over images and "
        "seeds], n seeds. In brackets beside a part's name: questions counted. Seed s of a row is "
        "pre-training s and fine-tuning s. Differences are paired by seed and image. In slanted "
        "type: published; below it ours less it, and whether it lies inside our interval."
    )
    return [" ".join(told), reading, *([result["note"]] if result["note"] else [])]
