"""What README and docs/ say exists: links, options, keys, configs, and snippets that run."""

import importlib
import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from m3ae.config import load_config
from m3ae.data.texts import load_tokenizer
from m3ae.downstream.config import load_finetune_config
from m3ae.downstream.model import Downstream, write_facts
from tests.recipe import ROOT, tiny_config

PAGES = [*ROOT.glob("*.md"), *sorted((ROOT / "docs").rglob("*.md")), ROOT / "data_prep/README.md"]
LOADERS = {"run_pretrain.py": load_config, "run_finetune.py": load_finetune_config}


def commands(page: Path) -> list[list[str]]:
    """Words of each command in the page's indented blocks; a trailing backslash goes on."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines() if line.startswith("    ")]
    return [
        shlex.split(line, comments=True)
        for line in lines
        if "python" in line.split()[:1] or line.startswith("torchrun")
    ]


def id_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=id_of)
def test_links_lead_somewhere(page):
    """A page that was moved or renamed."""
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{id_of(page)} -> {target}"


@pytest.mark.parametrize("page", [page for page in PAGES if "results" not in page.parts], ids=id_of)
def test_commands_have_their_options(page, capsys):
    """An option that was renamed or taken away; a config or a key that does not exist.

    Pages of results name the commit that their commands ran at.
    """
    for words in commands(page):
        script = next((word for word in words if word.endswith(".py")), None)
        if script in LOADERS:
            config = words[words.index("--config") + 1]
            place = words.index("--config") + 2
            overrides = [word for word in words[place:] if "=" in word and not word.startswith("-")]
            LOADERS[script](ROOT / config, overrides)
            continue
        if script is None and "-m" not in words:
            continue
        name = words[words.index("-m") + 1] if script is None else script[:-3].replace("/", ".")
        if not name.startswith(("m3ae.", "data_prep.", "verify_released")):
            continue
        with pytest.raises(SystemExit):
            importlib.import_module(name).main(["--help"])
        known = set(re.findall(r"--[\w-]+", capsys.readouterr().out))
        used = {word.partition("=")[0] for word in words if re.fullmatch(r"--[a-z][\w-]*", word)}
        assert used <= known, f"{id_of(page)}: {' '.join(words)}"


def test_readme_is_short():
    """A README that becomes a manual again."""
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 160


def test_readme_snippet_runs(shards, tmp_path, monkeypatch, capsys):
    """A snippet that cannot be run as it stands."""
    monkeypatch.chdir(tmp_path)
    model = Downstream(tiny_config().model, "vqa", 2)
    model.save_pretrained("runs/quickstart_vqa", load_tokenizer(shards / "tokenizer"))
    facts = {"task": "vqa", "answers": ["no", "yes"], "known": {}, "text_length": 16}
    write_facts(tmp_path / "runs/quickstart_vqa", **facts)
    for name in ("x.png", "y.png"):
        Image.new("L", (70, 80)).save(name)
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (snippet,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    exec(snippet, {})
    assert re.match(r"(no|yes) \[\['(no|yes)', 0\.\d+\], ", capsys.readouterr().out)
