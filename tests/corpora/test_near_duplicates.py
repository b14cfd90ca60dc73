"""Near-duplicate images and texts."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch._subclasses.fake_tensor import FakeTensorMode

from m3ae.corpora import alignment, candidates
from m3ae.corpora import near_duplicates as near
from m3ae.corpora.audit_work import near_images
from m3ae.corpora.match_kinds import THRESHOLD
from tests.data_prep.test_audit import scene


def gather(images) -> near.Pictures:
    pixels, aspects = zip(*map(near.picture, images), strict=True)
    return near.Pictures(torch.from_numpy(np.stack(pixels)), torch.tensor(aspects))


def jpeg(image: Image.Image) -> Image.Image:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=30)
    return Image.open(out)


def bordered(image: Image.Image) -> Image.Image:
    out = Image.new("L", (300, 220), 255)
    out.paste(image, (60, 20))
    return out


CHANGES = {
    "resized": lambda image: image.resize((50, 40)),
    "re-encoded": jpeg,
    "cropped": lambda image: image.crop((20, 16, 180, 144)),
    "corner": lambda image: image.crop((0, 0, 180, 144)),
    "square": lambda image: image.crop((20, 0, 180, 160)),
    "rotated": lambda image: image.rotate(4, Image.Resampling.BICUBIC),
    "quarter turn": lambda image: image.transpose(Image.Transpose.ROTATE_90),
    "flipped": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "turned and flipped": lambda image: image.transpose(Image.Transpose.TRANSVERSE),
    "contrast": lambda image: image.point(lambda v: v * 0.6 + 40),
    "bordered": bordered,
    "zoomed": lambda image: image.crop((70, 30, 190, 126)),
    "zoomed, bordered, re-encoded": lambda image: jpeg(bordered(image.crop((0, 40, 150, 160)))),
    "turned by 20 degrees": lambda image: image.rotate(20, Image.Resampling.BICUBIC),
}
KEEP = gather([scene(k) for k in range(6)])


def found(queries: near.Pictures, places=None, threshold=THRESHOLD, keep=KEEP):
    places = np.arange(100, 100 + len(queries)) if places is None else places
    return list(near_images(keep, queries, np.arange(len(keep)), places, threshold))


@pytest.mark.parametrize("change", CHANGES)
def test_changed_pictures_are_found(change):
    """A kind of change that the search no longer tolerates; a match with another picture."""
    queries = gather([CHANGES[change](scene(k)) for k in range(6)])
    assert sorted((i, j) for i, j, _ in found(queries)) == [(k, k) for k in range(6)]


def test_other_pictures_are_not():
    """A list that leaves out everything: scenes that share their coarse structure only."""
    others = []
    for k in range(6):
        coarse = scene(k).resize((6, 5), Image.Resampling.BOX).resize((200, 160))
        others.append(Image.blend(coarse, scene(100 + k), 0.5))
    assert not found(gather([*others, *(scene(50 + k) for k in range(20))]))
    flat = [Image.new("L", (90, 70), grey) for grey in (0, 100, 255)]
    assert not found(gather(flat), keep=gather(flat), threshold=0.01)


def test_an_image_is_not_its_own_match():
    """A self-audit that reports each image as a duplicate of itself, or misses its twin."""
    twice = gather([scene(0), scene(1), scene(0)])
    places = np.arange(3)
    parts = near_images(twice, twice, places, places, THRESHOLD)
    assert sorted((i, j) for i, j, _ in parts) == [(0, 2)]  # each pair once


def test_blocks(monkeypatch):
    """Rows of the second block, or pairs of the second part, named as those of the first."""
    queries = gather([scene(k) for k in (9, 4, 8, 2, 0)])
    whole = found(queries)
    monkeypatch.setattr(near, "BLOCK", 2)
    monkeypatch.setattr(near, "PART", 1)
    monkeypatch.setattr(near, "PAIRS", 1)
    assert [match[:2] for match in found(queries)] == [match[:2] for match in whole]
    assert [match[:2] for match in whole] == [(1, 4), (3, 2), (4, 0)]


def test_maps():
    """A map applied in the wrong order; the inverse of another one."""
    one = torch.tensor([[0.9, 0.1, 0.2], [-0.2, 0.8, -0.1]])
    other = torch.tensor([[0.0, -1.0, 0.1], [1.0, 0.0, 0.3]])
    assert torch.allclose(alignment.compose(one, alignment.invert(one)), torch.eye(2, 3), atol=1e-6)
    point = torch.tensor([0.3, -0.4, 1.0])
    both = alignment.compose(one, other) @ point
    assert torch.allclose(both, one @ torch.cat([other @ point, torch.ones(1)]), atol=1e-6)


def test_borders():
    """A frame within a frame, and a picture that is nothing but border."""
    grey = np.full((100, 120), 255, np.uint8)
    grey[10:90, 10:110] = 0
    grey[20:80, 30:100] = np.random.default_rng(0).integers(50, 200, (60, 70))
    assert near.content_box(grey) == (30, 20, 100, 80)
    assert near.content_box(np.full((5, 9), 3, np.uint8)) == (0, 0, 9, 5)
    for size in ((1, 1), (1, 400), (3000, 5)):
        pixels, aspect = near.picture(Image.new("RGB", size))
        assert pixels.shape == (near.SIDE, near.SIDE) and 0.25 <= aspect <= 4


def test_near_texts(monkeypatch):
    """Equal texts counted twice, near ones missed, rows of a second block shifted."""
    keep = ["a large mass in the left lung apex seen here", "normal hand", "third text of all"]
    against = ["other words", "a large mass in the right lung apex seen here", keep[2], keep[0]]
    for cells in (2**20, 3):
        monkeypatch.setattr(near, "CELLS", cells)
        matches = [match for part in near.near_texts(keep, against, 0.5) for match in part]
        assert [match[:2] for match in matches] == [(1, 0)] and 0.5 < matches[0][2] < 1
    assert list(near.near_texts([], against, 0.5)) == []
    assert near.normal_text("  The\tLEFT-lung, (x-ray). ") == "the left lung x ray"


def test_directions_of_a_pair():
    """A zoomed picture that is found in the whole one, but not the whole one in it."""
    zoomed = gather([CHANGES["zoomed"](scene(k)) for k in range(6)])
    queries = gather([scene(k) for k in range(6)])
    assert sorted((i, j) for i, j, _ in found(queries, keep=zoomed)) == [(k, k) for k in range(6)]


def test_a_picture_among_many_alike():
    """The twin lost among more pictures of the same coarse structure than are aligned."""
    coarse = scene(0).resize((6, 5), Image.Resampling.BOX).resize((200, 160))
    alike = [Image.blend(coarse, scene(100 + k), 0.5) for k in range(2 * candidates.CANDIDATES)]
    queries = gather([CHANGES["zoomed"](alike[k]) for k in (3, 30)])
    assert [match[:2] for match in found(queries, keep=gather(alike))] == [(0, 3), (1, 30)]


def test_half_the_products(monkeypatch):
    """A corpus with itself: pairs across or within blocks that are skipped with the other half."""
    images = [scene(k) for k in (0, 1, 0, 2, 1, 0)]
    pictures, places = gather(images), np.arange(6)
    asked, match = [], candidates.Index.match

    def watched(self, keypoints, first):
        result = match(self, keypoints, first)
        asked.append((first, int(result[2].min()) // keypoints.there.shape[1]))
        return result

    monkeypatch.setattr(candidates.Index, "match", watched)
    for block, starts in ((2, [0, 2, 4]), (6, [0])):
        asked.clear()
        monkeypatch.setattr(near, "BLOCK", block)
        pairs = sorted(m[:2] for m in near_images(pictures, pictures, places, places, 0.85))
        assert pairs == [(0, 2), (0, 5), (1, 4), (2, 5)]
        assert sorted(first for first, _ in asked) == starts
        assert all(lowest >= first for first, lowest in asked)


def test_device_and_threads(monkeypatch):
    """The path of a device, or of one thread, that gives other pairs; an option of torch's that
    stays changed."""
    queries = gather([scene(k) for k in (9, 4, 2)])
    monkeypatch.setattr(near, "BLOCK", 1)
    threads, results = torch.get_num_threads(), []
    for number in (1, 2):
        args = (np.arange(6), np.arange(10, 13), THRESHOLD, torch.device("cpu"))
        search = near.Search(KEEP, queries, *args)
        search.threads = number
        results.append(list(search.run()))
    assert results[0] == results[1] and torch.get_num_threads() == threads
    assert [(start, [m[:2] for m in near_]) for start, near_ in results[0]] == [
        (0, []),
        (1, [(1, 4)]),
        (2, [(2, 2)]),
    ]


def test_no_tensor_stays_on_the_cpu():
    """A constant made on the CPU, which stops the search on a GPU; fake tensors."""
    with FakeTensorMode():
        pixels = torch.zeros(2, near.SIDE, near.SIDE, dtype=torch.uint8, device="cuda")
        aspects, maps = torch.ones(2, device="cuda"), torch.ones(2, 2, 3, device="cuda")
        found = near.keypoints(pixels, aspects)
        mirrored = candidates.mirrored(found.descriptors)
        fine = alignment.refine(pixels[:, None].float(), pixels[:, None].float(), maps, 1)
        score = alignment.score(pixels, pixels, candidates.squeezed(maps, aspects, aspects), 64)
        rough = alignment.rough_score(pixels, pixels, alignment.invert(maps))
        places = (found.x[:, :9], found.y[:, :9])
        votes = candidates.Votes(
            places, places, found.size[:, :9], found.angle[:, :9], places[0] > 0
        )
        fit = votes.fit(torch.zeros(2, dtype=torch.long, device="cuda"), votes.agree()[:, 0])
        for result in (found.there, mirrored, fine, score, rough, fit):
            assert result.device.type == "cuda"
