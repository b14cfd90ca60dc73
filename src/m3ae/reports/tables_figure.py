"""The plot of a table: lines with intervals, or numbers on a grid, beside the paper's points."""

import io
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from m3ae.reports import parts
from m3ae.reports.tables_layout import entries_of, number

# Of a file that stands alone: to be read on white and on black.
ALONE = {"ink": "#7d7d78", "muted": "#7d7d78", "rule": "#9a9a9466", "a": "#2f78d4", "b": "#d9622b"}
SHADES = ("#e9f1fb", "#2a6fc9")
Point = tuple[float, float | None, float, list[float] | None]  # x, y, mean, interval


def draw(result: dict[str, Any]) -> str | None:
    """The plot as SVG in the stand-in colours of `parts`; None without a number of ours.

    A panel for each column and protocol that has the figure's part.
    """
    about = result["figure"]
    if about is None:
        return None
    panels = [
        (f"{result['columns'][column]['title']}, {protocol}", ours, theirs)
        for column, part in about["parts"].items()
        for protocol in result["columns"][column]["protocols"]
        if (ours := our_points(result, column, protocol, part))
        for theirs in [published_points(result, column, protocol, part)]
    ]
    if not panels:
        return None
    settings = {"svg.fonttype": "none", "svg.hashsalt": result["name"], "font.size": 9}
    colour = parts.COLOURS
    settings |= dict.fromkeys(("text.color", "xtick.color", "ytick.color"), colour["muted"])
    settings |= {"axes.labelcolor": colour["muted"], "axes.edgecolor": colour["rule"]}
    settings |= {"axes.titlesize": 9, "font.family": "sans-serif"}
    with matplotlib.rc_context(settings):
        wide = min(len(panels), 2)
        high = -(-len(panels) // wide)
        figure = Figure(figsize=(4.6 * wide, 3.1 * high), layout="constrained")
        places = figure.subplots(high, wide, squeeze=False).ravel()
        for axes in places[len(panels) :]:
            axes.remove()
        for axes, (title, ours, theirs) in zip(places[: len(panels)], panels, strict=True):
            axes.set_title(title, loc="left", wrap=True)
            (line if about["kind"] == "line" else heat)(axes, about, ours, theirs)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    return file.getvalue()


def our_points(result: dict[str, Any], column: str, protocol: str, part: str) -> list[Point]:
    """Rows that have a place in the figure and a number."""
    entries, found = entries_of(result), []
    for row, about in result["rows"].items():
        figures = entries[row, column, protocol]["parts"].get(part)
        if about["x"] is not None and figures and figures["mean"] is not None:
            found.append((about["x"], about["y"], figures["mean"], figures["interval"]))
    return sorted(found, key=lambda point: point[:2])


def published_points(result: dict[str, Any], column: str, protocol: str, part: str) -> list[Point]:
    """The paper's numbers for such rows."""
    found: list[Point] = []
    for one in result["published"]:
        same = (one["column"], one["protocol"]) == (column, protocol)
        about = result["rows"].get(one["row"] or "", {})
        if same and about.get("x") is not None and part in one["values"]:
            found.append((about["x"], about["y"], one["values"][part], None))
    return sorted(found, key=lambda point: point[:2])


def line(axes: Axes, about: dict[str, Any], ours: list[Point], theirs: list[Point]) -> None:
    """Means joined by a line, their intervals as bars; the paper's as hollow diamonds."""
    colour = parts.SERIES | parts.COLOURS
    x, means = ([point[k] for point in ours] for k in (0, 2))
    axes.plot(x, [100 * mean for mean in means], color=colour["a"], marker="o", markersize=4)
    for place, _, _, ends in ours:
        if ends is not None:
            axes.plot([place] * 2, [100 * end for end in ends], color=colour["a"], linewidth=1.2)
    style = {"marker": "D", "markersize": 5, "markerfacecolor": "none", "linestyle": "none"}
    y = [100 * point[2] for point in theirs]
    axes.plot([point[0] for point in theirs], y, color=colour["b"], **style)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color=colour["rule"], linewidth=0.6)
    axes.tick_params(length=0)
    axes.set_xticks(sorted({point[0] for point in [*ours, *theirs]}))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel(about["x"])
    axes.set_ylabel("percent")


def heat(axes: Axes, about: dict[str, Any], ours: list[Point], theirs: list[Point]) -> None:
    """A square a row, with its number, and the paper's below it."""
    xs, ys = (sorted({point[k] or 0.0 for point in ours}) for k in (0, 1))
    grid = np.full((len(ys), len(xs)), np.nan)
    for x, y, mean, _ in ours:
        grid[ys.index(y or 0.0), xs.index(x)] = 100 * mean
    shades = matplotlib.colors.LinearSegmentedColormap.from_list("", SHADES)
    axes.pcolormesh(grid, cmap=shades, edgecolors=parts.COLOURS["rule"], linewidth=0.5)
    low, high = np.nanmin(grid), np.nanmax(grid)
    published = {(x, y or 0.0): mean for x, y, mean, _ in theirs}
    for row, y in enumerate(ys):
        for column, x in enumerate(xs):
            value = grid[row, column]
            if np.isnan(value):
                continue
            told = f"{value:.1f}"
            if (x, y) in published:
                told += f"\n(paper {number(published[x, y])})"
            dark = value > low + 0.55 * (high - low)
            place = {"ha": "center", "va": "center", "color": "#ffffff" if dark else "#1b1b1a"}
            axes.text(column + 0.5, row + 0.5, told, **place)
    axes.set_xticks(np.arange(len(xs)) + 0.5, [f"{x:g}" for x in xs])
    axes.set_yticks(np.arange(len(ys)) + 0.5, [f"{y:g}" for y in ys])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel(about["x"])
    axes.set_ylabel(about["y"] or "")


def alone(svg: str) -> str:
    """The plot as a file of its own."""
    for name, stand_in in (parts.COLOURS | parts.SERIES).items():
        svg = svg.replace(stand_in, ALONE.get(name, ALONE["muted"]))
    return svg
