"""Exclusion lists: images to leave out, one id a line (anything after a tab is a remark).

`find_listed` alone decides which image an id names, in prepared splits and in raw corpora: the one
whose key or file is written like the id or ends like it, whole folders at a time. The suffix of an
image file may be missing on either side. So `view1` names patient7/view1.jpg where no other file
has that name; where one has, the id is refused, as any choice would be wrong.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from m3ae.data.shards import Shards
from m3ae.files import is_unicode, need, printable, read_json_object, read_text

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".gif", ".bmp", ".tif", ".tiff", ".webp", ".dcm"}
IMAGE_FILES = "images.json"  # of a split whose keys are not the names of the images' files
_MOST = 5  # ids named in a message


def image_files(folder: Path) -> list[Path]:
    """The image files below a folder, by path.

    Raises ValueError naming one whose name is not UTF-8: no list or table could hold it.
    """
    paths = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in IMAGE_SUFFIXES]
    if foreign := [path for path in paths if not is_unicode(str(path.relative_to(folder)))]:
        more = f" ({len(foreign)} such names in all)" if len(foreign) > 1 else ""
        raise ValueError(f"{printable(foreign[0])}: its name is not UTF-8; rename it{more}")
    return paths


def image_stem(key: str) -> str:
    """An image key without folders and without the suffix of an image file."""
    name = PurePosixPath(key)
    return name.stem if name.suffix.lower() in IMAGE_SUFFIXES else name.name


def image_keys(split: Shards) -> list[str]:
    """The key of every image of a split."""
    return [split.image_key(image) for image in range(split.num_images)]


def image_names(split: Shards) -> list[tuple[str, ...]]:
    """The names of every image of a split: its key and, where it was another one, its file's.

    Raises ValueError where the file of the latter is damaged.
    """
    path = split.folder / IMAGE_FILES
    try:
        files = read_json_object(path) if path.exists() else {}
    except ValueError as error:
        raise ValueError(f"{path}: damaged ({error}); copy it again") from error
    if not all(isinstance(name, str) for name in files.values()):
        raise ValueError(f"{path}: damaged (a name that is no text); copy it again")
    return [(key, files[key]) if key in files else (key,) for key in image_keys(split)]


def read_exclusions(*files: str | Path) -> set[str]:
    """Ids of these lists: the part of each line before the first tab; # starts a remark."""
    texts = [read_text(need(Path(file), "a list of image ids"), "utf-8-sig") for file in files]
    lines = [line for text in texts for line in text.splitlines() if not line.startswith("#")]
    return {line.split("\t")[0].strip() for line in lines} - {""}


def _cut_suffix(name: str) -> tuple[str, str]:
    """A name without the suffix of an image file, and that suffix in lower case or ""."""
    stem, _, ending = name.rpartition(".")
    suffix = f".{ending.lower()}"
    return (stem, suffix) if stem and suffix in IMAGE_SUFFIXES else (name, "")


def _endings(path: str) -> Iterator[str]:
    """a/b/c, b/c, c of a/b/c."""
    yield path
    for place, letter in enumerate(path):
        if letter == "/":
            yield path[place + 1 :]


def find_listed(
    images: Iterable[Sequence[str]], ids: Collection[str], where: str | Path
) -> dict[str, list[int]]:
    """Numbers of the images that each id names, of ids that name one; `images`: their names.

    A name that is the id goes before one that only ends like it. Raises ValueError, with `where`,
    for an id that may be different images, be it one by its key and another by its file.
    """
    wanted: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for name in ids:
        plain = name.replace("\\", "/").removeprefix("./")
        # a.png may be one of a.png.jpg, too, and backslashes are some file's own.
        for path, suffix in {_cut_suffix(name), _cut_suffix(plain), (plain, "")}:
            wanted[path].append((name, suffix))
    # Of each id, by kind of name (key or file) and rank: the names that fit, with their images.
    hits: dict[str, dict[tuple[int, int], dict[str, set[int]]]] = defaultdict(dict)
    for number, names in enumerate(images):
        for kind, name in enumerate(names):
            path, suffix = _cut_suffix(name)
            for ending in _endings(path):
                for listed_id, listed_suffix in wanted.get(ending, ()):
                    if suffix == listed_suffix or not (suffix and listed_suffix):
                        rank = 0 if name == listed_id else 1 if ending == path else 2
                        fits = hits[listed_id].setdefault((kind, rank), {})
                        fits.setdefault(name, set()).add(number)
    found: dict[str, list[int]] = {}
    for listed_id, fits in hits.items():
        # The lowest rank of a kind comes last.
        best = {kind: fits[kind, rank] for kind, rank in sorted(fits, reverse=True)}
        if (1, 0) in fits and (0, 0) not in fits:
            best = {1: fits[1, 0]}  # the very file
        meant = [(name, numbers) for named in best.values() for name, numbers in named.items()]
        if any(numbers != meant[0][1] for _, numbers in meant):
            images = sorted(name for name, _ in meant)
            could = f"may be any of {len(images)} images, e.g. {images[0]!r} and {images[1]!r}"
            hint = "list it with its folders and suffix (audit.py --ids path)"
            raise ValueError(f"{where}: id {listed_id!r} of an exclusion list {could}; {hint}")
        found[listed_id] = sorted(meant[0][1])
    return found


def listed(split: Shards, ids: Collection[str]) -> tuple[np.ndarray, set[str]]:
    """Which images of a split are listed: bool (images,), and the ids that name one.

    Raises ValueError naming the split as `find_listed` does.
    """
    named = find_listed(image_names(split), ids, split.folder) if ids else {}
    mask = np.zeros(split.num_images, bool)
    mask[[number for numbers in named.values() for number in numbers]] = True
    return mask, set(named)


def unmatched(
    lists: Mapping[str | Path, set[str]], named: Collection[str], example: str
) -> dict[str | Path, list[str]]:
    """Of each file with such ids: those that name no image, sorted; `lists`: ids by file.

    ValueError where none of any list does; a list may be of another corpus than another one.
    `example`: the name of an image, for the message.
    """
    lost = {file: sorted(ids.difference(named)) for file, ids in lists.items()}
    lost = {file: names for file, names in lost.items() if names}
    if lost and all(len(lost.get(file, ())) == len(ids) for file, ids in lists.items()):
        files, whose = ", ".join(map(str, lost)), "its" if len(lost) == 1 else "their"
        every = [name for names in lost.values() for name in names]
        message = f"{files}: none of {whose} {len(every)} ids is an image, e.g. {every[0]!r}"
        raise ValueError(f"{message}; images are named like {example!r} here: list them so")
    return lost


def say_unmatched(file: str | Path, ids: set[str], lost: Sequence[str]) -> str:
    """For a warning: how many ids of a list name no image, and the first of them."""
    examples = ", ".join(lost[:_MOST]) + (", ..." if len(lost) > _MOST else "")
    return f"{file}: {len(lost)} of {len(ids)} ids name no image: {printable(examples)}"
