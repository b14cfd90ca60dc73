"""The page to ask a picture, served by its command and used in a headless Chromium.

Needs gradio and playwright (`make test-page`). M3AE_PAGE_PICTURES=FOLDER keeps what was seen.
"""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.request import urlopen

import pytest
from PIL import Image

import run_finetune
import run_pretrain
from tests.conftest import SMALL
from tests.end_to_end.conftest import FAST
from tests.recipe import ROOT

playwright = pytest.importorskip("playwright.sync_api")
pytest.importorskip("gradio")
CAPTIONS = "An axial ultrasound image of the abdomen.\nA sagittal radiograph of the knee.\n"
CAPTIONS += "A coronal ct image of the chest."
WAIT = 120_000  # ms: a busy machine must not fail a test


@pytest.fixture(scope="session")
def models(shards, questions, tmp_path_factory) -> list[str]:
    """The command's options: M3AE_PAGE_OPTIONS, else small models trained here for a moment."""
    if given := os.environ.get("M3AE_PAGE_OPTIONS"):
        return given.split("|")
    folder = tmp_path_factory.mktemp("models")
    pretrain = ["--config", str(ROOT / "configs/pretrain/quickstart.yaml"), *SMALL]
    pretrain += [f"output={folder}/pre", "train.steps=4", f"data.train=[{shards}/train]"]
    pretrain += [f"data.valid=[{shards}/test]", f"data.tokenizer={shards}/tokenizer"]
    assert run_pretrain.main(pretrain) == 0
    tune = ["--config", str(ROOT / "configs/finetune/vqa_rad.yaml"), *FAST, f"init={folder}/pre"]
    tune += [f"output={folder}/vqa", f"data.train={questions}/train", "train.epochs=1"]
    tune += [f"data.test={questions}/test", f"data.tokenizer={shards}/tokenizer"]
    assert run_finetune.main(tune) == 0
    return ["--model", f"{folder}/vqa", "--rank-with", f"{folder}/pre"]


@pytest.fixture(scope="session")
def pictures(questions) -> list[Path]:
    """Image files of phantoms."""
    folder = os.environ.get("M3AE_PAGE_PHANTOMS")
    raw = Path(folder) if folder else questions.parent / "raw"
    return sorted(path for path in raw.rglob("*.jpg"))


@pytest.fixture(scope="session")
def served(models, pictures, tmp_path_factory):
    """The page's address, and the folder of temporary files of the process that serves it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    temporary = tmp_path_factory.mktemp("temporary")
    command = [sys.executable, "-m", "m3ae.serve", *models, "--port", str(port)]
    command += ["--images", str(pictures[0].parent)]
    inside = {**os.environ, "TMPDIR": str(temporary), "PYTHONPATH": str(ROOT / "src")}
    address = f"http://127.0.0.1:{port}/"
    with subprocess.Popen(command, cwd=ROOT, env=inside) as process:
        try:
            for _ in range(240):
                assert process.poll() is None, "the command ended"
                try:
                    urlopen(address).close()
                    break
                except OSError:
                    time.sleep(0.5)
            yield address, temporary
        finally:
            process.terminate()
            assert process.wait(60) == 0 and not list(temporary.iterdir())


@pytest.fixture(scope="session")
def browser():
    """A headless Chromium: the machine's, else playwright's own."""
    own = shutil.which("chromium") or shutil.which("chromium-browser")
    with playwright.sync_playwright() as running:
        chromium = running.chromium.launch(executable_path=own, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser, served):
    """Opens the page as another user; every request that it makes is to this machine."""
    opened, asked = [], []

    def new():
        context = browser.new_context(viewport={"width": 1100, "height": 900})
        page = context.new_page()
        page.set_default_timeout(WAIT)
        page.on("request", lambda request: asked.append(request.url))
        page.goto(served[0])
        opened.append(context)
        return page

    yield new
    for context in opened:
        context.close()
    elsewhere = [url for url in asked if not url.startswith((served[0], "data:", "blob:"))]
    assert asked and not elsewhere, elsewhere


def upload(page, path: Path, wanted: str = "img.m3ae-shown") -> None:
    page.set_input_files("#m3ae-file", str(path))
    page.wait_for_selector(f"#m3ae-picture {wanted}")


def start_asking(page, question: str) -> None:
    page.fill("#m3ae-question textarea, #m3ae-question input", question)
    page.get_by_role("button", name="Ask", exact=True).click()


def keep(page, name: str) -> None:
    if folder := os.environ.get("M3AE_PAGE_PICTURES"):
        page.screenshot(path=f"{folder}/{name}.png", full_page=True)


def natural_width(page, place: str) -> int:
    return page.eval_on_selector(place, "image => image.naturalWidth")


def test_upload_ask_and_rank(visit, pictures, served):
    """A page on which no answer, no picture or no ranking comes, or that keeps an upload."""
    page = visit()
    start_asking(page, "Is there a cyst?")
    page.wait_for_selector("#m3ae-answers [role=alert]")
    assert "Choose a picture first." in page.inner_text("#m3ae-answers")
    upload(page, pictures[0])
    assert natural_width(page, "img.m3ae-shown") > 0
    start_asking(page, "Is there a cyst?")
    page.wait_for_selector("#m3ae-answers img.m3ae-attention")
    assert natural_width(page, "img.m3ae-attention") > 200
    shares = re.findall(
        r"([\d.]+)%", page.inner_text("#m3ae-answers").partition("Probabilities")[0]
    )
    assert len(shares) == 5 and sorted(map(float, shares), reverse=True) == [*map(float, shares)]
    assert "the answer to the nearest question" in page.inner_text("#m3ae-answers")
    keep(page, "page_ask")
    page.get_by_role("tab", name="Rank captions").click()
    page.fill("#m3ae-captions textarea", CAPTIONS)
    page.get_by_role("button", name="Rank", exact=True).click()
    page.wait_for_selector("#m3ae-ranks ol")
    lines = page.inner_text("#m3ae-ranks ol")
    assert all(caption in lines for caption in CAPTIONS.splitlines())
    scores = [float(found) for found in re.findall(r"[+-]\d+\.\d+", lines)]
    assert len(scores) == 3 and scores == sorted(scores, reverse=True)
    keep(page, "page_rank")
    assert not [path for path in served[1].rglob("*") if path.is_file()]


def test_pick(visit, pictures):
    """A list of pictures from which none can be had."""
    page = visit()
    page.get_by_label("or pick one").click()
    page.get_by_role("option", name=pictures[1].name).click()
    page.wait_for_selector("img.m3ae-shown")
    start_asking(page, "Is there a cyst?")
    page.wait_for_selector("#m3ae-answers img.m3ae-attention")
    upload(page, pictures[0])  # whose answers these are not
    page.wait_for_selector("#m3ae-answers img.m3ae-attention", state="detached")


def test_bad_files(visit, pictures, tmp_path):
    """A picture that fills the memory; a file that ends the page; an error without a sentence."""
    page = visit()
    Image.new("1", (20_000, 20_000)).save(tmp_path / "huge.png")
    upload(page, tmp_path / "huge.png", "[role=alert]")
    assert "million pixels that this page takes" in page.inner_text("#m3ae-picture")
    keep(page, "page_refused")
    upload(page, pictures[0])
    (tmp_path / "notes.txt").write_text("these are words\n" * 50)
    upload(page, tmp_path / "notes.txt", "[role=alert]")
    assert "cannot be used as a picture" in page.inner_text("#m3ae-picture")
    start_asking(page, "Is there a cyst?")
    page.wait_for_selector("#m3ae-answers [role=alert]")
    upload(page, pictures[0])
    start_asking(page, "Is there a cyst?")
    page.wait_for_selector("#m3ae-answers img.m3ae-attention")


def test_two_users_at_once(visit, pictures):
    """One user's picture or answer on the page of another."""
    pages = [visit(), visit()]
    for page, path in zip(pages, pictures, strict=False):
        upload(page, path)
    questions = "Is there a cyst?", "In what plane is this image?"
    for page, question in zip(pages, questions, strict=True):
        start_asking(page, question)  # neither waits for the other
    sources = []
    for page, question in zip(pages, questions, strict=True):
        page.wait_for_selector("#m3ae-answers img.m3ae-attention")
        assert question in page.inner_text("#m3ae-answers")
        sources.append(page.get_attribute("img.m3ae-shown", "src"))
    assert sources[0] != sources[1]
