r"""Find what one corpus shares with another, so that it can be left out: images, ids and texts.

--keep is what to evaluate on, --against what to train on; each is one or more folders of images,
prepared splits, or prepared corpora (all their splits). The same folder on both sides is searched
for duplicates within it, each pair once. Kinds of match, each with a flag --no-KIND:

  id         what --id-pattern finds in the name or key, MedPix's synpicN (also in MPX1007_synpicN),
             else the name without suffix; --no-id where both number 1, 2, ...
  id-window  names whose numbers by --id-pattern are at most --window apart, so of one MedPix case
  bytes      the same file or, in raw shards, the same pixels
  image      the same picture, though resized, zoomed, framed, turned, of other contrast, ...: a
             score of at least --threshold; docs/results/audit.md: what is found
  text       the same text but for case, punctuation and spaces
  near-text  texts of five words or more with a similarity of at least --text-threshold

Only prepared splits have texts; one of more than --stock images on a side is a stock phrase and
matches nothing, and so is an id (view1 of every patient). Of an image, 50 matches of a kind are
listed, the others counted.

Give raw folders rather than prepared splits where you have both: small pixels hide details, and
raw shards are cut to their centre square. A GPU is used where there is one, else all cores. If
stopped, the same command goes on from OUT.parts (16 KB an image), which it removes at the end.

OUT is the list for --exclude of the preparation scripts and data.exclude of the configs,
`id<TAB>reason`: the images of --against that match. OUT.json holds counts and every pair, OUT.html
the pairs side by side: look at it before you believe the list.

example: python data_prep/audit.py --keep vqa_rad/images --against vqa_med/Train_images \
             --out exclude.txt
         python data_prep/audit.py --keep data/roco --against data/roco --out twins.txt
"""

import argparse
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from m3ae.command import parser_for, run
from m3ae.corpora.match_kinds import KINDS, MEDPIX, MOST_MATCHES, THRESHOLD
from m3ae.files import write_json, write_text
from m3ae.processes import alone_in, usable_cores


def check(args: argparse.Namespace) -> None:
    """Set `args.kinds`; raises ValueError where a number is out of range or no kind is left."""
    args.kinds = [kind for kind in KINDS if not getattr(args, "no_" + kind.replace("-", "_"))]
    if not args.kinds:
        raise ValueError("every kind of match is switched off: nothing to look for")
    for name in ("threshold", "text_threshold"):
        if not 0 < getattr(args, name) <= 1:
            raise ValueError(f"--{name.replace('_', '-')} {getattr(args, name)}: not in (0, 1]")
    try:
        groups = re.compile(args.id_pattern).groups
    except re.error as error:
        wrong = f"--id-pattern {args.id_pattern}: no regular expression: {error}"
        raise ValueError(wrong) from error
    if groups != 1:
        raise ValueError(f"--id-pattern {args.id_pattern}: needs one group, the number")
    for name in ("window", "stock", "page_pairs", "workers"):
        if getattr(args, name) < 0:
            raise ValueError(f"--{name.replace('_', '-')} {getattr(args, name)}: below 0")


def audit(args: argparse.Namespace) -> None:
    """The whole work."""

    check(args)
    folder = Path(f"{args.out}.parts")
    folder.mkdir(parents=True, exist_ok=True)
    with alone_in(folder):
        report(args, folder)
        shutil.rmtree(folder)


def report(args: argparse.Namespace, folder: Path) -> None:
    """Search, and write what was found; the folder keeps what is finished if it is stopped."""
    from m3ae.corpora.audit import find_matches, read_sides, small_splits
    from m3ae.corpora.audit_page import collect, count_pairs, exclusions, page

    sides, entries, unreadable = read_sides(args, folder)
    facts: dict[str, Any] = {}
    if small := small_splits(entries):
        print(small)
    pairs = collect(find_matches(*sides, args, facts, folder), entries)
    keep, against = (len(side.entries) for side in sides)
    names = ("kinds", "threshold", "window", "id_pattern", "text_threshold", "stock", "questions")
    options = {name: getattr(args, name) for name in names}
    counts = {"keep": keep, "against": against, "options": options}
    counts |= count_pairs(pairs, args.kinds) | facts | {"unreadable": unreadable}
    head = "# Images to leave out (--exclude, data.exclude): id, tab, what it matches and how\n"
    write_text(args.out, head + "".join(exclusions(pairs)))
    write_json(Path(f"{args.out}.json"), counts | {"list": [pair.plain() for pair in pairs]})
    with open(f"{args.out}.html", "w", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in page(pairs, args.page_pairs))
    found = f"{counts['images']} of {against} images match one of {keep} ({len(pairs)} pairs)"
    print(f"{found}; {len(unreadable)} unreadable")
    for kind, count in counts["by_kind"].items():
        print(f"    {kind:<10}{count['pairs']:>8} pairs{count['images']:>8} images")
    numbers = facts["numbers"]
    which = f"in {numbers['keep']} names of --keep, {numbers['against']} others"
    print(f"    numbers by --id-pattern: {which}")
    if "ids_of_many" in facts:
        print(
            f"    ids of more than --stock images of a side match nothing: {facts['ids_of_many']}"
        )
    if "matches_not_listed" in facts:
        cut = ", ".join(f"{n} by {kind}" for kind, n in facts["matches_not_listed"].items())
        print(f"    not listed, as more than {MOST_MATCHES} of an image by a kind: {cut}")
    if "texts" in facts:
        print(f"    texts: {facts['texts']}")
    print(f"{args.out} (list), {args.out}.json, {args.out}.html")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = parser_for(__doc__)
    add, images = parser.add_argument, "images of which the matching ones are listed"
    add("--keep", type=Path, nargs="+", required=True, metavar="DIR", help="images to keep")
    add("--against", type=Path, nargs="+", required=True, metavar="DIR", help=images)
    add("--out", type=Path, required=True, metavar="FILE", help="the exclusion list")
    for kind in KINDS:
        add(f"--no-{kind}", action="store_true", help=f"no matches by {kind}")
    add("--threshold", type=float, default=THRESHOLD, help="of images (default: %(default)s)")
    add("--text-threshold", type=float, default=0.8, help="of near texts (default: %(default)s)")
    pattern = "the number in a name, one group (default: %(default)s)"
    add("--id-pattern", default=MEDPIX, metavar="REGEX", help=pattern)
    add("--window", type=int, default=2, metavar="N", help="of MedPix numbers (default: 2)")
    stock = "texts and ids of more than N images match nothing (default: %(default)s)"
    add("--stock", type=int, default=20, metavar="N", help=stock)
    add("--questions", action="store_true", help="compare the texts of corpora of questions too")
    ids = "name files by name without suffix where no other file has it, else by path in their "
    ids += "folder (default), or all by path"
    add("--ids", choices=["stem", "path"], default="stem", help=ids)
    most = "pairs on the page, at most (default: %(default)s)"
    add("--page-pairs", type=int, default=500, metavar="N", help=most)
    add("--workers", type=int, default=usable_cores(), metavar="N", help="processes; 0: none")
    return run(audit, parser, argv)


if __name__ == "__main__":
    raise SystemExit(main())
