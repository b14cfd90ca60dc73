"""The page to ask a picture: what it does, and how Gradio shows it.

`Page` needs no Gradio; `build` and `launch` do.
"""

import base64
import binascii
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from m3ae.downstream.asking import (
    MOST_BYTES,
    MOST_PIXELS,
    Asker,
    Picture,
    Ranker,
    RefusedError,
    read_picture,
)
from m3ae.reports import asked

log = logging.getLogger("m3ae")

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".dcm"}
MOST_TO_PICK = 100  # files of --images
KEPT = 3600  # seconds after which a picture is forgotten where a page stays open
LOCAL = ("127.0.0.1", "localhost", "::1")
NO_PICTURE = "Choose a picture first."
DROP = f"""
<label for="m3ae-file">Upload a picture (at most {MOST_BYTES // 10**6} MB; not kept)</label><br>
<input type="file" id="m3ae-file" style="padding: 1rem; border: 1px dashed; width: 100%">
"""
# The file goes to the server inside of the event, so that no upload is ever written to a disk.
READ = f"""
element.addEventListener('change', (event) => {{
  const file = event.target.files[0];
  if (!file) return;
  if (file.size > {MOST_BYTES}) {{ trigger('submit', {{size: file.size, data: ''}}); return; }}
  const reader = new FileReader();
  reader.onload = () => trigger('submit', {{size: file.size, data: reader.result}});
  reader.readAsDataURL(file);
}});
"""


class Page:
    """What the page does, without how it looks: every function gives HTML, mistakes as well.

    `images`: name -> file of the pictures to pick.
    """

    def __init__(
        self,
        asker: Asker | None,
        ranker: Ranker | None,
        images: dict[str, Path],
        window: tuple[float, float] | None = None,
        most_pixels: int = MOST_PIXELS,
    ) -> None:
        self.asker, self.ranker, self.images = asker, ranker, images
        self.window, self.most_pixels = window, most_pixels
        self.sides = sorted({part.trained.image_px for part in (asker, ranker) if part})

    def upload(self, address: str, size: int) -> tuple[Picture | None, str]:
        """A picture from the data: address of a file of `size` bytes, and what it looks like."""
        if size > MOST_BYTES:
            said = f"{size / 1e6:,.0f} MB, more than the {MOST_BYTES / 1e6:,.0f} MB"
            return None, asked.refused(f"This file has {said} that this page takes.")
        try:
            data = base64.b64decode(address.partition(",")[2], validate=True)
        except (binascii.Error, ValueError):
            return None, asked.refused("This upload did not arrive whole; try it again.")
        return self._read(data)

    def pick(self, name: str | None) -> tuple[Picture | None, str]:
        """One of the pictures of --images, and what it looks like."""
        path = self.images.get(name or "")
        if path is None or not path.is_file():
            return None, asked.refused(NO_PICTURE)
        return self._read(path.read_bytes())

    def _read(self, data: bytes) -> tuple[Picture | None, str]:
        try:
            picture = read_picture(data, self.sides, self.window, self.most_pixels)
        except RefusedError as error:
            return None, asked.refused(str(error))
        return picture, asked.shown(picture)

    def ask(self, picture: Picture | None, question: str) -> str:
        """The answers to a question about a picture."""
        return _said(picture, lambda: asked.answered(self.asker.ask(picture, question)))

    def rank(self, picture: Picture | None, captions: str) -> str:
        """Captions ranked for a picture."""
        return _said(picture, lambda: asked.ranked(*self.ranker.rank(picture, captions)))


def _said(picture: Picture | None, work: Callable[[], str]) -> str:
    if picture is None:
        return asked.refused(NO_PICTURE)
    try:
        return work()
    except RefusedError as error:
        return asked.refused(str(error))


def build(page: Page) -> Any:
    """The page as Gradio's Blocks. Raises ImportError where Gradio is not installed."""
    gradio = import_gradio()

    def upload(event: gradio.EventData) -> tuple[Picture | None, str]:
        return page.upload(str(event.data), int(event.size))

    with gradio.Blocks(title="Ask a picture", analytics_enabled=False) as blocks:
        gradio.HTML(f"<h1>Ask a picture</h1>{asked.note(_about(page))}")
        picture = gradio.State(None, time_to_live=KEPT)
        with gradio.Row():
            with gradio.Column(scale=1):
                drop = gradio.HTML(html_template=DROP, js_on_load=READ)
                if page.images:
                    pick = gradio.Dropdown(list(page.images), value=None, label="or pick one")
                shown = gradio.HTML(elem_id="m3ae-picture")
            with gradio.Column(scale=2), gradio.Tabs():
                outs = _ask_tab(gradio, page, picture) if page.asker else []
                outs += _rank_tab(gradio, page, picture) if page.ranker else []
        # What was said of the picture before goes first.
        chosen = [drop.submit(upload, None, [picture, shown])]
        if page.images:
            chosen.append(pick.input(page.pick, pick, [picture, shown]))
        for event in chosen:
            event.then(lambda: [""] * len(outs) if len(outs) > 1 else "", None, outs)
    return blocks.queue(api_open=False, max_size=64, default_concurrency_limit=4)


def _ask_tab(gradio: Any, page: Page, picture: Any) -> list[Any]:
    """The tab of questions; returns what shows the answers."""
    with gradio.Tab("Ask"):
        question = gradio.Textbox(label="Question", elem_id="m3ae-question")
        button = gradio.Button("Ask", variant="primary")
        out = gradio.HTML(elem_id="m3ae-answers")
        for event in (button.click, question.submit):
            event(page.ask, [picture, question], out)
    return [out]


def _rank_tab(gradio: Any, page: Page, picture: Any) -> list[Any]:
    """The tab of captions; returns what shows their order."""
    with gradio.Tab("Rank captions"):
        captions = gradio.Textbox(label="Captions, one a line", lines=5, elem_id="m3ae-captions")
        button = gradio.Button("Rank", variant="primary")
        out = gradio.HTML(elem_id="m3ae-ranks")
        button.click(page.rank, [picture, captions], out)
    return [out]


def _about(page: Page) -> str:
    parts = []
    if page.asker:
        parts.append(f"Answers: {page.asker.trained.folder} ({page.asker.trained.task}).")
        if page.asker.blind_note:
            parts.append(f"No blind baselines: {page.asker.blind_note}.")
    if page.ranker:
        parts.append(f"Captions: {page.ranker.trained.folder}.")
    return " ".join([*parts, "For research; not a medical device."])


def import_gradio() -> Any:
    """Gradio, told beforehand to send nothing anywhere."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    try:
        import gradio
    except ImportError as error:
        raise ImportError(f"the page needs gradio: pip install -e .[page] ({error})") from error
    return gradio


def launch(page: Page, host: str, port: int | None, inbrowser: bool, wait: bool = True) -> Any:
    """Serve the page; with `wait` until it is interrupted. Returns the Blocks.

    Fonts are those of the reader's machine, so that the page asks nobody else for anything.
    """
    gradio = import_gradio()
    blocks = build(page)
    theme = gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])
    options = {"server_name": host, "server_port": port, "inbrowser": inbrowser, "theme": theme}
    # No share link, no history of runs in the browser, no uploads by Gradio's own way.
    options |= {"share": False, "run_history": False, "max_file_size": 1, "footer_links": []}
    blocks.launch(**options, ssr_mode=False, quiet=True, prevent_thread_lock=True)
    log.info("the page: %s (Ctrl+C ends it)", blocks.local_url)
    if host not in LOCAL:
        log.info("--host %s: whoever reaches it can use the page, there is no password", host)
    if wait:
        blocks.block_thread()
    return blocks


def pictures_of(folder: Path | None) -> dict[str, Path]:
    """The first image files of a folder by name; raises ValueError where there are none."""
    if folder is None:
        return {}
    if not folder.is_dir():
        raise FileNotFoundError(f"--images {folder}: no such folder")
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if not files:
        raise ValueError(f"--images {folder}: no image in it ({', '.join(sorted(SUFFIXES))})")
    if len(files) > MOST_TO_PICK:
        log.info("--images: the first %d of %d are offered", MOST_TO_PICK, len(files))
    return {path.name: path for path in files[:MOST_TO_PICK]}
