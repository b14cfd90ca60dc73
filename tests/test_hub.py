"""The hub is asked once."""

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from huggingface_hub import constants

from m3ae.data.texts import load_tokenizer
from m3ae.hub import ask_hub
from m3ae.models.weight_files import find_file


@pytest.fixture()
def anew(monkeypatch):
    """As in a process that has asked nothing yet."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    ask_hub.cache_clear()
    yield monkeypatch
    ask_hub.cache_clear()


def test_a_hub_that_does_not_answer(anew, caplog):
    """A minute of attempts, six for every file, before the line that says what is wrong."""
    anew.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    for ask in (lambda: find_file("a/b", "x", "y"), lambda: load_tokenizer("a/b")):
        with pytest.raises(FileNotFoundError, match="a/b"):
            ask()
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 1 and "http://127.0.0.1:9 cannot be reached" in lines[0]
    assert constants.HF_HUB_OFFLINE


def test_a_hub_that_answers(anew, caplog):
    """A hub taken for unreachable since it refuses one kind of question."""

    class Refuses(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_error(405)

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Refuses) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        anew.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        ask_hub()
        server.shutdown()
    assert not constants.HF_HUB_OFFLINE and not caplog.records
