"""Generate phantoms: a radiology-like corpus in the raw layouts of ROCO, MedICaT and VQA-RAD.

    python data_prep/phantoms.py --out data/phantoms
    python data_prep/roco.py --raw data/phantoms/roco --out shards/phantoms_roco ...

The pictures are drawn by this script and show nobody; every caption contains the word "phantom".
An image has independent facts: modality, plane, region, and (in 80 %) a finding with kind, side,
level, size and number. Texts add age and sex, which no image shows, and leave out some facts that
the image shows. A fact has exactly one word. "left" is the left of the *image*.

Written under OUT (the layouts asked for, then the description):

    roco/{train,validation,test}/radiology/{captions,...}.txt, images/ROCO_00001.jpg
    roco_references/roco_{train,val,test}_references.jsonl    a second sentence for some images
    medicat/release/*.jsonl, medicat/release/figures/*.png
    vqa_rad/VQA_RAD Dataset Public.json, vqa_rad/VQA_RAD Image Folder/
    tables/questions.csv, tables/classes.csv, tables/images/*.jpg    for table.py, only with
                      --layouts tables: the same images with questions, and with classes beside a
                      text that is always the same; the last fifth test, the tenth before it valid
    attributes.json   {fact: [its words]}, plus fine, coarse and text_only: lists of facts
    records.jsonl     the facts of every image, stated or not, by layout, split and file
    phantoms.json     options of the run, and whether it is complete

Every image and text comes from a generator keyed by (seed, layout, index): the same options give
the same bytes whatever the number of workers. An interrupted run is continued by the same command.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from m3ae.command import exit_status, parser_for
from m3ae.corpora.phantom_texts import BY_DEFAULT, LAYOUTS
from m3ae.corpora.phantoms import write_phantoms
from m3ae.files import write_json
from m3ae.processes import usable_cores

VERSION = 1


def claim(out: Path, options: dict) -> bool:
    """Reserve OUT for these options; return True if it already holds the complete corpus.

    Raises ValueError if OUT holds phantoms of other options, or what may be no phantoms.
    """
    if (out / "phantoms.json").exists():
        found = json.loads((out / "phantoms.json").read_text())
        had = {"version": found.get("version")} | found.get("options", {})
        asked = {"version": VERSION} | options
        if differing := [k for k in asked if had.get(k) != asked[k]]:
            detail = "; ".join(f"{k} {had.get(k)} there, {asked[k]} asked" for k in differing)
            raise ValueError(f"{out} holds phantoms of other options: {detail}")
        return found["complete"]
    for layout in options["layouts"]:
        if (out / layout).exists():
            raise ValueError(f"{out / layout} exists and was not written by phantoms.py")
    out.mkdir(parents=True, exist_ok=True)
    save_state(out, options, complete=False)
    return False


def save_state(out: Path, options: dict, complete: bool) -> None:
    """Write phantoms.json."""
    state = {"version": VERSION, "complete": complete, "options": options}
    write_json(out / "phantoms.json", state)


def at_least(least: int) -> Callable[[str], int]:
    """Return an argparse type: an integer of at least `least`."""

    def parse(text: str) -> int:
        if (value := int(text)) < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}, got {value}")
        return value

    return parse


def make_phantoms(out: Path, options: dict, workers: int) -> None:
    """The whole work."""
    if claim(out, options):
        print(f"{out} already holds this phantom corpus, complete: nothing to do")
        return
    images = write_phantoms(out, options, workers)
    save_state(out, options, complete=True)
    print(f"{images} phantom images in {out}: {', '.join(options['layouts'])}")


def main(argv: Sequence[str] | None = None) -> int:
    """Generate the corpus; return 0, or 2 with one line on stderr if OUT cannot be used."""
    parser = parser_for(__doc__)
    count, add = at_least(1), parser.add_argument
    add("--out", type=Path, required=True, help="folder to write; made if absent")
    add("--train", type=count, default=9000, help="ROCO training images (default: %(default)s)")
    add("--validation", type=count, default=500, help="ROCO validation images (%(default)s)")
    add("--test", type=count, default=1000, help="ROCO test images (%(default)s)")
    add("--medicat", type=count, default=1000, help="MedICaT figures (%(default)s)")
    add("--vqa", type=count, default=300, help="VQA-RAD images, ~7 questions each (%(default)s)")
    add("--tables", type=at_least(10), default=3000, help="images of the tables (%(default)s)")
    add("--px", type=at_least(32), default=192, help="image side in pixels (%(default)s)")
    add("--seed", type=at_least(0), default=0, help="another seed, another corpus (0)")
    which = "which corpora (all but tables)"
    add("--layouts", nargs="+", choices=LAYOUTS, default=BY_DEFAULT, help=which)
    processes = "processes; the output does not depend on it (%(default)s)"
    add("--workers", type=count, default=min(8, usable_cores()), help=processes)
    options = vars(parser.parse_args(argv))
    out, workers = options.pop("out"), options.pop("workers")
    options["layouts"] = [layout for layout in LAYOUTS if layout in options["layouts"]]
    if "tables" not in options["layouts"]:
        del options["tables"]  # so that a corpus made before there were tables is still complete
    return exit_status(lambda: make_phantoms(out, options, workers), mistake=2)


if __name__ == "__main__":
    raise SystemExit(main())
