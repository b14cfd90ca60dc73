r"""MIMIC-CXR -> shards of chest radiographs with sections of their reports.

The corpus needs credentialed access (PhysioNet: training, then a signed data use agreement), and
what is prepared from it stays under that agreement. Wanted are the layout of MIMIC-CXR-JPG and the
table of the reports' sections, which the scripts of MIMIC-CXR's own code repository make:

    DIR/files/p10/p10000032/s50414267/DICOM_ID.jpg
    DIR/mimic-cxr-2.0.0-split.csv.gz      dicom_id, study_id, subject_id, split
    DIR/mimic-cxr-2.0.0-metadata.csv.gz   dicom_id, ViewPosition (with --views only)
    DIR/mimic_cxr_sectioned.csv           study (s50414267), impression, findings, last_paragraph

Each table may be .csv or .csv.gz. The split is the official one (validate becomes valid). Every
image of a study has the study's findings and impression (--sections), as two texts or with --join
as one. A study with neither is left out, or gets its last paragraph with --last-paragraph.

example: python data_prep/mimic_cxr.py --raw mimic-cxr-jpg --out data/mimic_cxr \
             --tokenizer roberta-base
"""

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from m3ae.command import run
from m3ae.corpora.items import Drops, Item
from m3ae.corpora.prepare import corpus_parser, prepare
from m3ae.corpora.report import say_missing
from m3ae.corpora.tables import read_table
from m3ae.files import is_unicode, need

SPLITS = {"train": "train", "validate": "valid", "test": "test"}
SECTIONS = ("findings", "impression")
FALLBACK = "last_paragraph"
_DICOM = re.compile(r"[0-9A-Za-z-]+", re.ASCII)
_NUMBER = re.compile(r"[0-9]{1,10}", re.ASCII)

Texts = dict[str, tuple[str, ...]]  # texts by study, e.g. 50414267; empty where it has none


def find_table(raw: Path, name: str) -> Path:
    """NAME.csv.gz, else NAME.csv; raises FileNotFoundError where neither is there."""
    what = "a table of MIMIC-CXR (.csv.gz or .csv)"
    return need(raw / f"{name}.csv.gz", what, raw / f"{name}.csv")


def read_texts(
    path: Path,
    sections: Sequence[str],
    join: bool,
    fallback: bool,
    drops: Drops,
    encoding: str | None = None,
) -> Texts:
    """Texts of every study in the table of sections; `fallback`: last paragraph if it has none."""
    columns = ("study", *sections, *((FALLBACK,) if fallback else ()))
    texts: Texts = {}
    for number, row in read_table(path, columns, drops, encoding=encoding):
        study = row["study"].strip().removeprefix("s")
        where = f"{path.name}: row {number}: {row['study']}"
        if not _NUMBER.fullmatch(study):
            drops.add("report: study is not like s50414267", where)
        elif study in texts:
            drops.add("report: study occurs twice, first one kept", where)
        elif not all(map(is_unicode, row.values())):
            drops.add("report: not UTF-8", where)
        else:
            written = [row[name].strip() for name in sections if row[name].strip()]
            if not written and fallback and row[FALLBACK].strip():
                written = [row[FALLBACK].strip()]
            texts[study] = (" ".join(written),) if written and join else tuple(written)
    return texts


def read_views(path: Path, drops: Drops) -> dict[str, str]:
    """ViewPosition by dicom_id, in capitals; empty where it is not known."""
    views = {}
    for number, row in read_table(path, ("dicom_id", "ViewPosition"), drops):
        dicom, view = row["dicom_id"].strip(), row["ViewPosition"].strip().upper()
        if dicom in views:
            where = f"{path.name}: row {number}: {dicom}"
            drops.add("metadata: dicom_id occurs twice, first one kept", where)
        else:
            views[dicom] = sys.intern(view)  # one string a view, not one an image
    return views


Ids = tuple[str, str, str]  # dicom, study, subject


def read_ids(path: Path, drops: Drops) -> dict[str, list[Ids]]:
    """The images of each split, in the order of the table of splits."""
    splits: dict[str, list[Ids]] = {name: [] for name in SPLITS.values()}
    for number, row in read_table(path, ("dicom_id", "study_id", "subject_id", "split"), drops):
        dicom, split = row["dicom_id"].strip(), row["split"].strip()
        study = row["study_id"].strip().removeprefix("s")
        subject = row["subject_id"].strip().removeprefix("p")
        where = f"{path.name}: row {number}: {dicom}"
        if not all((_DICOM.fullmatch(dicom), _NUMBER.fullmatch(study), _NUMBER.fullmatch(subject))):
            drops.add("image: dicom_id, study_id or subject_id is no id", where)
        elif split not in SPLITS:
            drops.add("image: unknown split", f"{where}: {split}")
        else:
            splits[SPLITS[split]].append((dicom, study, subject))
    return splits


def keep_usable(
    ids: list[Ids], texts: Texts, views: dict[str, str] | None, wanted: Sequence[str], drops: Drops
) -> list[Ids]:
    """The images with a view among `wanted` (with `views`) and a text; others are counted."""
    kept = []
    for dicom, study, subject in ids:
        if views is not None and dicom not in views:
            drops.add("image: not in the metadata", dicom)
        elif views is not None and views[dicom] not in wanted:
            drops.add(f"image: view {views[dicom] or 'unknown'} not among --views", dicom)
        elif study not in texts:
            drops.add("image: its study has no row in mimic_cxr_sectioned", f"s{study}/{dicom}")
        elif not texts[study]:
            drops.add("image: its study has none of the sections", f"s{study}/{dicom}")
        else:
            kept.append((dicom, study, subject))
    return kept


@dataclass(frozen=True)
class Images:
    """Items of one split, made one by one whenever they are run through."""

    folder: Path
    ids: list[Ids]
    texts: Texts

    def __iter__(self) -> Iterator[Item]:
        for dicom, study, subject in self.ids:
            place = self.folder / f"p{subject[:2]}" / f"p{subject}" / f"s{study}" / f"{dicom}.jpg"
            yield Item(dicom, place, self.texts[study])


def count_corpus(ids: list[Ids], texts: Texts) -> dict[str, int]:
    """Of one split: images, studies, and studies that have no row or none of the sections."""
    studies = {study for _, study, _ in ids}
    return {
        "images": len(ids),
        "studies": len(studies),
        "studies_without_report": sum(study not in texts for study in studies),
        "studies_without_section": sum(not texts.get(study, True) for study in studies),
    }


def find_views(args: argparse.Namespace, drops: Drops) -> dict[str, str] | None:
    """`read_views` where --views is given; ValueError where a view of it is in no row."""
    if not args.views:
        return None
    views = read_views(find_table(args.raw, "mimic-cxr-2.0.0-metadata"), drops)
    known = set(views.values()) - {""}
    if unknown := set(args.views) - known:
        examples = ", ".join(sorted(known)[:20]) or "none"
        raise ValueError(f"--views {min(unknown)}: the metadata have {examples}")
    return views


def make_shards(args: argparse.Namespace) -> None:
    """The whole work."""
    files = need(need(args.raw, "the MIMIC-CXR corpus") / "files", "MIMIC-CXR-JPG's images")
    args.sections = [name for name in SECTIONS if name in args.sections]
    args.views = args.views and sorted({view.upper() for view in args.views})
    drops, sections = Drops(), find_table(args.raw, "mimic_cxr_sectioned")
    chosen = (args.sections, args.join, args.last_paragraph)
    texts = read_texts(sections, *chosen, drops, args.text_encoding)
    views = find_views(args, drops)
    ids = read_ids(find_table(args.raw, "mimic-cxr-2.0.0-split"), drops)
    counts, splits, dropped = {}, {}, {}
    for name, found in ids.items():
        if found:
            counts[name], dropped[name] = count_corpus(found, texts), Drops()
            dropped[name].merge(drops.as_dict(), " (any split)")
            kept = keep_usable(found, texts, views, args.views or (), dropped[name])
            splits[name] = Images(files, kept, texts)
    if not splits:
        raise ValueError(f"{args.raw}: no image in the table of splits: {drops.as_dict()}")
    say_missing(args.raw, splits)
    prepare(splits, dropped, args, source="MIMIC-CXR", facts={"corpus": counts})


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = corpus_parser(__doc__)
    add, which = parser.add_argument, "which to take (default: both)"
    add("--sections", nargs="+", choices=SECTIONS, default=SECTIONS, help=which)
    add("--join", action="store_true", help="findings and impression as one text")
    last = "take the last paragraph of a report that has none of the sections"
    add("--last-paragraph", action="store_true", help=last)
    views = "only images of these ViewPositions, e.g. PA AP (default: all)"
    add("--views", nargs="+", metavar="VIEW", help=views)
    return run(make_shards, parser, argv)


if __name__ == "__main__":
    raise SystemExit(main())
