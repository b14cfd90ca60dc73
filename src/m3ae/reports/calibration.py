"""Pictures of calibration: reliability, and accuracy where the least certain are withheld."""

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLOURS, MUTED = ("#2a6fc9", "#d9622b"), "#5f5f5f"
SIDES = {"these": "these predictions", "against": "those compared with"}


def draw(calibration: dict[str, dict[str, Any]], folder: Path) -> None:
    """Write reliability.png and coverage.png of `scoring.calibration`'s results by side."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, panel in (("reliability", reliability), ("coverage", coverage)):
        figure = Figure(figsize=(5, 4.4), layout="constrained")
        axes = figure.add_subplot()
        # One side or two, so perhaps a colour is left over.
        for (side, figures), colour in zip(calibration.items(), COLOURS, strict=False):
            panel(axes, SIDES[side], figures, colour)
        axes.set(xlim=(0, 1), ylim=(0, 1))
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, loc="upper left" if name == "reliability" else "lower left")
        figure.savefig(folder / f"{name}.png", dpi=150, metadata={"Software": None})


def reliability(axes: Axes, title: str, figures: dict[str, Any], colour: str) -> None:
    """Accuracy over mean score of each bin; on the diagonal the scores are right."""
    bins, label = figures["bins"], f"{title}: error {100 * figures['error']:.1f} %"
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8, linestyle="--")
    x, y = ([some[key] for some in bins] for key in ("score", "accuracy"))
    axes.plot(x, y, "o-", color=colour, label=label, clip_on=False)
    axes.set(xlabel=f"mean score of a bin ({len(bins)}, of equal numbers)", ylabel="accuracy")


def coverage(axes: Axes, title: str, figures: dict[str, Any], colour: str) -> None:
    """Accuracy of the most certain answers over the fraction that is answered."""
    x, y = ([point[key] for point in figures["coverage"]] for key in ("coverage", "accuracy"))
    label = f"{title}: area {100 * figures['area']:.1f} %"
    axes.axhline(figures["accuracy"], color=colour, linewidth=0.8, linestyle="--")
    axes.plot(x, y, "-", color=colour, label=label)
    axes.set(xlabel="fraction answered, the most certain first", ylabel="accuracy of these")
