"""ROCO's images by their two names, ROCO_00001.jpg and the figure's; the hub's copies of pairs.

Downloads of before 2022, and copies of them, have PMC4608653_cro-0008-0385-g01.jpg: the archive's
name and the figure's, which licences.txt has whole and dlinks.txt in two columns.
"""

import os
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path, PurePosixPath

from m3ae.corpora.items import Drops, Item
from m3ae.corpora.stored import FileNames, parquet_rows
from m3ae.corpora.tables import read_lines
from m3ae.data.exclusions import image_stem

LINKS, LICENCES = "dlinks.txt", "licences.txt"


def figures(folder: Path, file: str) -> Iterator[tuple[str, str, str]]:
    """Place, ROCO id and figure name of each line of dlinks.txt or licences.txt; none if not there.

    The figure's name is "" where a line has none.
    """
    if not (folder / file).exists():
        return
    for number, line in read_lines(folder / file):
        columns = [column.strip() for column in line.split("\t" if file == LINKS else ",")]
        figure = columns[1] if file == LICENCES and len(columns) > 1 else ""
        archives = [word for word in line.split() if word.endswith(".tar.gz")]
        if file == LINKS and len(columns) > 2 and archives:
            stem = PurePosixPath(archives[0]).name.removesuffix(".tar.gz")
            figure = f"{stem}_{columns[-1]}"
        if columns[0] != "ROCO_ID":
            yield f"{file}:{number}: {line[:60]}", columns[0], figure


def figure_names(folder: Path, drops: Drops) -> dict[str, str]:
    """ROCO id by figure name, e.g. PMC4608653_cro-0008-0385-g01.jpg, of a split's folder."""
    names: dict[str, str] = {}
    for file in (LINKS, LICENCES):
        for where, key, figure in figures(folder, file):
            if not figure:
                drops.add("line: no archive and figure", where)
            elif names.setdefault(figure, key) != key and file == LINKS:
                drops.add("line: figure occurs twice, first one kept", where)
    return names


def image_files(folder: Path, keys: Iterable[str]) -> dict[str, str]:
    """File in `images` of each ROCO id, by either name; ID.jpg where there is none."""
    names = FileNames(os.listdir(folder / "images"))
    files = {key: names.find(key) for key in keys}
    if None in files.values():
        for _, key, figure in chain(figures(folder, LINKS), figures(folder, LICENCES)):
            if figure and key in files and files[key] is None:
                files[key] = names.find(image_stem(figure))
    return {key: name or f"{key}.jpg" for key, name in files.items()}


def image_id(folder: Path, key: str, file: str) -> str:
    """Where an image lies, if its file is not called like its key; else ""."""
    place = PurePosixPath(folder.parent.name, folder.name, "images", file)
    return "" if image_stem(file) == key else str(place)


def parquet_pairs(files: Iterable[Path], drops: Drops) -> list[Item]:
    """Items of the hub's parquet copies, an image with its image_id and one caption a row."""
    items: dict[str, Item] = {}
    for place, row in parquet_rows(files, ("image_id", "caption"), image="image"):
        name, text = row["image_id"], row["caption"]
        if not isinstance(name, str) or not name.strip():
            drops.add("row: no image_id", place.where)
        elif not isinstance(text, str) or not text.strip():
            drops.add("row: no caption", f"{place.where}: {name}")
        elif name in items:
            drops.add("row: image_id occurs twice, first one kept", f"{place.where}: {name}")
        else:
            items[name] = Item(name, place, (text,))
    return list(items.values())
