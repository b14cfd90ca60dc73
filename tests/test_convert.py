"""`python -m m3ae.convert`: a released checkpoint becomes a folder of the same numbers."""

import base64
import json
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import ClassVar

import pytest
import torch
from PIL import Image

from m3ae import convert
from m3ae.data.texts import fingerprint, load_tokenizer
from m3ae.downstream.model import Downstream, read_facts
from m3ae.downstream.trained import load_trained
from m3ae.models import M3AE
from m3ae.models.image_encoder import resize_positions
from tests.end_to_end.test_verify_released import tokenizer_of_the_golden_model
from tests.recipe import ROOT, TINY, close, golden, golden_batch, golden_model, golden_state

ANSWERS = [f"answer {number}" for number in range(11)]
SIZES = [line for line in TINY if line.startswith(("model.", "data.text_length"))]
RETRIEVAL = {"irtr_head.weight": torch.ones(1, 192), "irtr_head.bias": torch.ones(1)}
POSITIONS = "vision_encoder.visual.positional_embedding"


@pytest.fixture()
def work(tmp_path) -> Path:
    """A folder with a tokeniser, answers and checkpoints in the released format."""
    texts = ["axial ct of the chest", "is there a mass", "answer yes or no"]
    tokenizer_of_the_golden_model(tmp_path / "tokenizer", texts)
    orders = {"paper": sorted(ANSWERS), "reference_order": ANSWERS}
    (tmp_path / "answers.json").write_text(json.dumps(orders))
    whole = golden_state(heads=True) | RETRIEVAL
    heads = {"vqa": "vqa_head", "classification": "cls_head", "retrieval": "irtr_head"}
    body = {key: x for key, x in whole.items() if "head" not in key}
    for task, head in heads.items():
        state = body | {key: x for key, x in whole.items() if key.startswith(head)}
        torch.save({"state_dict": state, "epoch": 3}, tmp_path / f"{task}.ckpt")
    torch.save({"state_dict": golden_state(), "epoch": 9}, tmp_path / "pretrained.ckpt")
    torch.save({"state_dict": whole}, tmp_path / "all.ckpt")
    return tmp_path


@pytest.fixture()
def run(work, capsys):
    """Runs the command on a checkpoint of `work`; returns its exit code and what went wrong."""

    def call(name: str, *more: str, out: str = "out") -> tuple[int, str]:
        own = ["--tokenizer", str(work / "tokenizer"), "--set", *SIZES]
        config = ["--config", str(ROOT / "configs/pretrain/m3ae.yaml")]
        code = convert.main([str(work / name), str(work / out), *config, *own, *more])
        return code, capsys.readouterr().err

    return call


def inputs() -> dict[str, torch.Tensor]:
    return {key: golden_batch()[key] for key in ("image", "text_ids", "text_keep")}


@torch.no_grad()
def test_a_pretrained_checkpoint(work, run):
    """A weight, a size or a tokeniser that is not the checkpoint's."""
    assert run("pretrained.ckpt")[0] == 0
    model, ours = M3AE.from_pretrained(work / "out").eval(), golden_model()
    assert model.config == ours.config
    for key, tensor in ours.state_dict().items():
        assert torch.equal(model.state_dict()[key], tensor), key
    pair = model.encode_pair(*inputs().values())
    assert torch.equal(pair.pooled, ours.encode_pair(*inputs().values()).pooled)
    assert fingerprint(load_tokenizer(work / "out")) == fingerprint(
        load_tokenizer(work / "tokenizer")
    )
    assert read_facts(work / "out") is None


@torch.no_grad()
@pytest.mark.parametrize(("task", "record"), [("vqa", "vqa"), ("classification", "cls")])
def test_a_fine_tuned_checkpoint(task, record, work, run):
    """Answers in another order, or scores that are not those recorded from the authors' code."""
    wanted = golden()[record]["logits"]
    names = ANSWERS[: wanted.shape[1]]
    (work / "list.json").write_text(json.dumps(names))
    answers = work / ("answers.json" if task == "vqa" else "list.json")
    assert run(f"{task}.ckpt", "--answers", str(answers), "--data", "VQA-RAD")[0] == 0
    model = Downstream.from_pretrained(work / "out").eval()
    close(model.scores(inputs()), wanted, 3e-5, "logits")
    trained = load_trained(work / "out")
    assert trained.task == task and trained.facts["answers"] == names
    assert trained.text_length == 16 and trained.known == set(names)
    assert trained.facts["source"] == "VQA-RAD"
    assert (
        M3AE.from_pretrained(work / "out").state_dict().keys() < golden_model().state_dict().keys()
    )


def test_a_retrieval_checkpoint(work, run):
    """A head without answers refused for want of them."""
    assert run("retrieval.ckpt")[0] == 0
    model = Downstream.from_pretrained(work / "out")
    assert torch.equal(model.retrieval_head.weight, RETRIEVAL["irtr_head.weight"])


def test_the_side_of_the_images_comes_from_the_file(work, run):
    """A model fine-tuned at 384 px refused, or its positions shrunk to the config's side."""
    content = torch.load(work / "vqa.ckpt")
    table = resize_positions(content["state_dict"][POSITIONS], 6)
    content["state_dict"][POSITIONS] = table
    torch.save(content, work / "larger.ckpt")
    assert run("larger.ckpt", "--answers", str(work / "answers.json"))[0] == 0
    model = Downstream.from_pretrained(work / "out")
    assert model.config.image_encoder.image_px == 96
    assert torch.equal(model.image_encoder.position_embedding, table)
    assert read_facts(work / "out")["image_px"] == 96


def test_a_checkpoint_of_several_heads(work, run):
    """One of several heads taken as it comes, or the others dropped without a word."""
    code, error = run("all.ckpt", "--answers", str(work / "answers.json"))
    assert code == 2 and "heads of vqa, classification, retrieval; say which with --task" in error
    code, said = run("all.ckpt", "--answers", str(work / "answers.json"), "--task", "vqa")
    assert code == 0
    assert "dropped cls_head, itm_head, mim_head, mlm_head, retrieval_head" in said


def test_what_cannot_be_converted(work, run):
    """A folder half written, a head without a meaning, or an error of many lines."""
    short = work / "short.json"
    short.write_text(json.dumps(ANSWERS[:5]))
    (work / "cut.ckpt").write_bytes((work / "vqa.ckpt").read_bytes()[:-999])
    torch.save({"state_dict": {"itm_head.fc.bias": torch.zeros(2)}}, work / "part.ckpt")
    for arguments, message in (
        (["vqa.ckpt"], "vqa.ckpt: has a vqa_head; give --answers"),
        (["vqa.ckpt", "--answers", str(short)], "is (11"),
        (["vqa.ckpt", "--answers", str(work / "none.json")], "none.json does not exist"),
        (["vqa.ckpt", "--task", "retrieval"], "no head of --task retrieval in it (vqa)"),
        (["cut.ckpt"], "cut.ckpt is no PyTorch checkpoint, or is cut short"),
        (["part.ckpt"], "lacks image_encoder.position_embedding: no checkpoint of M3AE"),
        (["none.ckpt"], "none.ckpt"),
        (["pretrained.ckpt", "--push", "a/b"], "--push: the card lacks --data, --licence"),
    ):
        code, error = run(*arguments)
        assert code == 2 and message in error and error.count("error: ") == 1, error
        assert not (work / "out").exists()
    (work / "out").mkdir()
    (work / "out" / "notes.txt").touch()
    code, error = run("pretrained.ckpt")
    assert code == 2 and "out: not empty; give a new folder" in error


def test_the_card(work, run, monkeypatch):
    """A card that does not say what it is, whose numbers these are, or how to load it."""
    assert run("pretrained.ckpt")[0] == 0
    card = (work / "out" / "README.md").read_text()
    assert "pre-trained" in card and "Not stated." in card and "license: other" in card
    (lines,) = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    found: dict = {}
    monkeypatch.chdir(work)
    Image.new("L", (80, 80)).save("x.png")
    exec(lines.replace("this folder", str(work / "out")), found)
    assert type(found["predictor"].trained.model) is M3AE


@pytest.mark.parametrize("wrong", ["{}", "[]", "{"])
def test_an_evaluation_of_something_else(wrong, work, run):
    """A traceback of a file that is no evaluation, after the folder was written."""
    (work / "wrong.json").write_text(wrong)
    own = ["--answers", str(work / "answers.json"), "--evaluation", str(work / "wrong.json")]
    code, error = run("vqa.ckpt", *own)
    assert code == 2 and "wrong.json" in error and error.count("\n") == 1
    assert not (work / "out").exists()


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as an upload needs: what is committed is kept in `files`."""

    files: ClassVar[dict[str, bytes]] = {}

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        answer: dict = {"url": f"http://{self.headers['Host']}/someone/model", "success": True}
        if "/preupload/" in self.path:
            paths = [entry["path"] for entry in json.loads(body)["files"]]
            how = {"uploadMode": "regular", "shouldIgnore": False, "oid": None}
            answer = {"files": [{"path": path, **how} for path in paths]}
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    self.files[line["value"]["path"]] = content
            answer |= {"commitUrl": answer["url"] + "/commit/" + "0" * 40, "commitOid": "0" * 40}
        self.reply(answer)

    def do_GET(self) -> None:
        self.reply({"id": "someone/model", "sha": "0" * 40, "siblings": []})

    def reply(self, answer: dict) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, *_: object) -> None:
        """Nothing: the test's output is the command's."""


@pytest.fixture()
def hub(monkeypatch):
    """A hub on this machine, and a login to it; gives what was uploaded."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Hub.files.clear()
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    monkeypatch.setattr(
        "huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}"
    )
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    yield Hub.files
    server.shutdown()
    server.server_close()


def test_an_upload(work, run, hub, monkeypatch):
    """A file that stays behind, a card with something open, a traceback without the hub."""
    card = ["--data", "ROCO and MedICaT", "--licence", "apache-2.0"]
    code, said = run("pretrained.ckpt", *card, "--push", "someone/model")
    assert code == 0, said
    assert hub == {path.name: path.read_bytes() for path in (work / "out").iterdir()}
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    code, error = run("pretrained.ckpt", *card, "--push", "someone/model", out="again")
    assert code == 2 and re.search("error: .*offline", error) and error.count("error: ") == 1
    text = hub["README.md"].decode()
    assert "Not stated" not in text and 'from_pretrained("someone/model")' in text
    assert "license: apache-2.0" in text and "Pre-trained on ROCO and MedICaT." in text
