"""ROCO's images by their two names: ROCO_00001.jpg, and the figure's in its article.

Downloads of before 2022, and copies of them, have PMC4608653_cro-0008-0385-g01.jpg: the archive's
name and the figure's, which licences.txt has whole and dlinks.txt in two columns.
"""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from m3ae.corpora.items import Drops
from m3ae.corpora.stored import FileNames
from m3ae.corpora.tables import read_lines
from m3ae.data.exclusions import image_stem


def figures(folder: Path, drops: Drops) -> Iterator[tuple[str, str, str]]:
    """Place, ROCO id and figure name of each line of dlinks.txt and licences.txt, if there."""
    if (folder / "dlinks.txt").exists():
        for number, line in read_lines(folder / "dlinks.txt"):
            columns, where = line.split("\t"), f"dlinks.txt:{number}"
            archives = [word for word in line.split() if word.endswith(".tar.gz")]
            if len(columns) < 3 or not archives:
                drops.add("line: no archive and figure", f"{where}: {line[:60]}")
                continue
            stem = PurePosixPath(archives[0]).name.removesuffix(".tar.gz")
            yield where, columns[0].strip(), f"{stem}_{columns[-1].strip()}"
    if (folder / "licences.txt").exists():
        for number, line in read_lines(folder / "licences.txt"):
            columns, where = line.split(","), f"licences.txt:{number}"
            if len(columns) < 2:
                drops.add("line: no figure", f"{where}: {line[:60]}")
            elif columns[0] != "ROCO_ID":
                yield where, columns[0].strip(), columns[1].strip()


def figure_names(folder: Path, drops: Drops) -> dict[str, str]:
    """ROCO id by figure name, e.g. PMC4608653_cro-0008-0385-g01.jpg, of a split's folder."""
    names: dict[str, str] = {}
    for where, key, name in figures(folder, drops):
        if names.setdefault(name, key) != key and where.startswith("dlinks"):
            drops.add("line: figure occurs twice, first one kept", f"{where}: {name}")
    return names


def image_files(folder: Path, keys: Iterable[str]) -> dict[str, str]:
    """File in `images` of each ROCO id, by either name; ID.jpg where there is none."""
    names = FileNames(os.listdir(folder / "images"))
    files = {key: names.find(key) for key in keys}
    if None in files.values():
        for _, key, figure in figures(folder, Drops()):
            if key in files and files[key] is None:
                files[key] = names.find(image_stem(figure))
    return {key: name or f"{key}.jpg" for key, name in files.items()}


def image_id(folder: Path, key: str, file: str) -> str:
    """Where an image lies, if its file is not called like its key; else ""."""
    place = PurePosixPath(folder.parent.name, folder.name, "images", file)
    return "" if image_stem(file) == key else str(place)
