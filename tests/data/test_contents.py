"""What a path leads to, whatever the path."""

import dataclasses
import shutil

from m3ae.data.contents import contents
from tests.recipe import tiny_config


def test_data_that_moved(shards, tmp_path):
    """A folder that is another one elsewhere, a changed one that is the same, a hub id sought."""

    def of(train, tokenizer="some/hub"):
        config = tiny_config()
        data = dataclasses.replace(config.data, train=tuple(train), valid=(), tokenizer=tokenizer)
        return contents(dataclasses.replace(config, data=data))

    shutil.copytree(shards / "train", tmp_path / "moved")
    here = of([str(shards / "train")])
    assert here == of([str(tmp_path / "moved")]) and list(here) == ["data.train"]
    assert of([str(shards / "test")]) != here
    assert (
        of([str(shards / "train"), str(shards / "test")])["data.train"][0] == here["data.train"][0]
    )
    assert of([str(tmp_path / "nowhere")]) == {}
    path = tmp_path / "moved/manifest.json"
    path.write_text(path.read_text().replace('"px": 64', '"px": 65'))
    assert of([str(tmp_path / "moved")]) != here
