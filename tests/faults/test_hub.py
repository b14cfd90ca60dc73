"""Code of a tokeniser's or model's repository: never run, never asked about, nothing fetched."""

import json
import shutil
import socket

import pytest

from m3ae.data.texts import load_tokenizer
from m3ae.models.pretrained import read_pretrained
from m3ae.models.weight_files import read_weights
from tests.faults.offered import some


@pytest.fixture()
def folder(shards, tmp_path):
    """A tokeniser whose settings name a class of its own, with the code beside it."""
    place, sentinel = tmp_path / "tokenizer", tmp_path / "executed"
    shutil.copytree(shards / "tokenizer", place)
    code = f"open({str(sentinel)!r}, 'w')\nclass Own: pass\n"
    for name in ("tokenization_own.py", "modeling_own.py", "configuration_own.py"):
        (place / name).write_text(code)
    return place, sentinel


@pytest.fixture()
def no_network(monkeypatch):
    asked = []

    def refuse(*address: object, **_: object) -> None:
        asked.append(address)
        raise OSError("no network in this test")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return asked


AUTO_MAP = {"AutoTokenizer": ["tokenization_own.Own", "tokenization_own.Own"]}
ELSEWHERE = {"AutoTokenizer": ["someone/else--tokenization_own.Own", None]}


@pytest.mark.parametrize("auto_map", [AUTO_MAP, ELSEWHERE])
@pytest.mark.parametrize("known", some([True, False]))
def test_a_tokenisers_own_code(folder, no_network, auto_map, known, monkeypatch):
    """Code beside a tokeniser that is imported, or a question at the terminal whether to."""
    place, sentinel = folder
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked at the terminal"))
    path = place / "tokenizer_config.json"
    settings = json.loads(path.read_text()) | {"auto_map": auto_map}
    if not known:
        settings["tokenizer_class"] = "OwnTokenizer"
    path.write_text(json.dumps(settings))
    config = {"model_type": "own", "auto_map": {"AutoConfig": "configuration_own.Own"}}
    (place / "config.json").write_text(json.dumps(config))
    try:
        assert load_tokenizer(place).is_fast
    except ValueError as error:
        assert str(place) in str(error) and "\n" not in str(error)
    assert not sentinel.exists() and not no_network


def test_nothing_is_fetched_for_folders(folder, no_network, tmp_path):
    """A local folder that lacks a file, looked for on the hub."""
    place, _ = folder
    assert load_tokenizer(place).is_fast
    for read in (read_weights, read_pretrained):
        for source in (place, tmp_path / "not" / "there", "./nor/here"):
            with pytest.raises((ValueError, FileNotFoundError)):
                read(source)
    assert not no_network
