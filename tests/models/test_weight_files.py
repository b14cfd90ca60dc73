"""Weight files in every layout that they come in: the right tensors, and nothing is executed."""

import copy
import json
from pathlib import Path

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from m3ae.config import ImageEncoderConfig
from m3ae.models.image_encoder import ImageEncoder
from m3ae.models.pretrained import load_image_encoder
from m3ae.models.weight_files import Inert, find_file, read_checkpoint, read_weights, unwrapped
from tests.models.clips import DEPTH, HEADS, HIDDEN, PATCH, PX, WIDTH, clip, picture

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")


def clip_encoder(**changes) -> ImageEncoder:
    """An image encoder of ours at the size of `clip()`."""
    sizes = {"weights": None, "kind": "clip", "image_px": PX, "patch_px": PATCH, "width": WIDTH}
    sizes |= {"depth": DEPTH, "heads": HEADS, "mlp_ratio": HIDDEN / WIDTH}
    sizes |= {"layer_norm_eps": 1e-5, "activation": "quick_gelu"}
    return ImageEncoder(ImageEncoderConfig(**(sizes | changes))).eval()


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


# ------------------------------------------------------------------------------ TorchScript


@torch.no_grad()
@pytest.mark.parametrize("form", ["script", "trace"])
def test_torchscript_archive(form, tmp_path):
    """ViT-B-16.pt as it is published refused, a name with its module's class, fp16 kept on."""
    theirs = clip()
    make = torch.jit.script if form == "script" else lambda m: torch.jit.trace(m, picture())
    make(copy.deepcopy(theirs)).half().save(tmp_path / "ViT-B-16.pt")
    read = read_weights(tmp_path / "ViT-B-16.pt")
    rounded = theirs.half().float()
    # An archive holds buffers too that a state_dict leaves out.
    assert same(read, rounded.state_dict() | {"attn_mask": torch.zeros(7, 7)})
    ours = clip_encoder()
    load_image_encoder(ours, str(tmp_path / "ViT-B-16.pt"))
    torch.testing.assert_close(ours(picture()), rounded(picture()), rtol=1e-5, atol=5e-6)


@torch.no_grad()
def test_half_weights_at_another_size(tmp_path):
    """Positions resized at the file's precision: wrong by its rounding."""
    theirs = clip().half()
    torch.jit.script(theirs).save(tmp_path / "half.pt")
    torch.save(theirs.float().state_dict(), tmp_path / "whole.pt")
    encoders = [clip_encoder(image_px=48), clip_encoder(image_px=48)]
    for encoder, name in zip(encoders, ("half.pt", "whole.pt"), strict=True):
        load_image_encoder(encoder, str(tmp_path / name))
    assert same(encoders[0].state_dict(), encoders[1].state_dict())


class Trap(torch.nn.Module):
    """A module whose `__setstate__` writes a file, which `torch.jit.load` would run."""

    def __init__(self, trace: str) -> None:
        super().__init__()
        self.weight, self.trace = torch.nn.Parameter(torch.arange(3.0)), trace

    @torch.jit.export
    def __getstate__(self) -> tuple[torch.Tensor, str, bool]:
        return self.weight, self.trace, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[torch.Tensor, str, bool]) -> None:
        self.weight, self.trace, self.training = state[0], state[1], state[2]
        torch.ops.aten.save(state[0], state[1])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


Trap.__setstate__.__annotations__.pop("return")


def test_an_archive_runs_nothing(tmp_path):
    """A downloaded archive that runs its own method, which writes a file."""
    trace, path = tmp_path / "trace", tmp_path / "trap.pt"
    torch.jit.script(torch.nn.ModuleList([Trap(str(trace))])).save(path)
    for read in (read_checkpoint, read_weights):
        assert same(read(path), {"0.0": torch.arange(3.0)})  # a state of its own has no names
    with pytest.raises(ValueError, match=r"trap\.pt"):
        load_image_encoder(clip_encoder(), str(path))
    assert not trace.exists()
    with pytest.warns(UserWarning, match="TorchScript archive"):
        torch.load(path, weights_only=False)  # so the trap is one
    assert trace.exists()


def test_an_archive_without_tensors(tmp_path):
    """An optimised archive, whose weights are constants of its code, read as an empty model."""
    frozen = torch.jit.freeze(torch.jit.script(clip()))
    frozen.save(tmp_path / "frozen.pt")
    with pytest.raises(ValueError, match=r"frozen\.pt: no tensors in it"):
        read_weights(tmp_path / "frozen.pt")


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_a_cut_archive(share, tmp_path):
    """A download that stopped: a traceback, or a model of zeros."""
    path = tmp_path / "cut.pt"
    torch.jit.script(clip()).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"cut\.pt is no PyTorch checkpoint, or is cut") as error:
        read_weights(path)
    assert "\n" not in str(error.value)


# ------------------------------------------------------------------------------ several files


def bert() -> transformers.BertModel:
    sizes = {"hidden_size": WIDTH, "num_attention_heads": HEADS, "intermediate_size": HIDDEN}
    config = transformers.BertConfig(vocab_size=50, num_hidden_layers=3, **sizes)
    return transformers.BertModel(config).eval()


def in_parts(folder: Path, form: str) -> dict[str, torch.Tensor]:
    """A model written in several files by transformers (safetensors), or by hand (bin)."""
    model = bert()
    model.save_pretrained(folder, max_shard_size="8KB")
    state = model.state_dict()
    if form == "bin":
        for path in folder.glob("model*"):
            path.unlink()
        names = list(state)
        parts = {"pytorch_model-1-of-2.bin": names[:9], "pytorch_model-2-of-2.bin": names[9:]}
        listed = {name: part for part, names in parts.items() for name in names}
        for part, names in parts.items():
            torch.save({name: state[name] for name in names}, folder / part)
        index = {"metadata": {"total_size": 1}, "weight_map": listed}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return state


@pytest.mark.parametrize("form", ["safetensors", "bin"])
@pytest.mark.parametrize("place", ["folder", "index", "hub"])
def test_weights_in_several_files(form, place, tmp_path, monkeypatch):
    """A large model refused, its first file alone read, or a hub id in the same form."""
    folder = tmp_path / "saved"
    if place == "hub":
        folder = cached(tmp_path, monkeypatch)
    state = in_parts(folder, form)
    assert len([path for path in folder.iterdir() if "-of-" in path.name]) > 1
    index = next(folder.glob("*.index.json"))
    source = {"folder": folder, "index": index, "hub": "someone/model"}[place]
    assert same(read_weights(source), state)


def cached(tmp_path: Path, monkeypatch) -> Path:
    """The folder of `someone/model` in a hub cache, which is all that is at hand."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    place, commit = tmp_path / "hub" / "models--someone--model", "0" * 40
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(commit)
    (place / "snapshots" / commit).mkdir(parents=True)
    return place / "snapshots" / commit


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_wrong_indices(form, tmp_path):
    """A file that was not fetched, files of two models mixed, or an index that leads outside."""
    in_parts(tmp_path, form)
    index = next(tmp_path.glob("*.index.json"))
    good = json.loads(index.read_text())
    name, part = next(iter(good["weight_map"].items()))
    for change, message in (
        ({name: "../outside.bin"}, r"index\.json: names \.\./outside\.bin"),
        ({"extra": part}, r"index\.json: lists other tensors than its files hold, e\.g\. extra"),
    ):
        index.write_text(json.dumps(good | {"weight_map": good["weight_map"] | change}))
        with pytest.raises(ValueError, match=message):
            read_weights(tmp_path)
    for text, message in (
        ("{}", "no weight_map in it"),
        ("[]", "expected a JSON object"),
        ("{", ""),
    ):
        index.write_text(text)
        with pytest.raises(ValueError, match=rf"index\.json.*{message}"):
            read_weights(tmp_path)
    index.write_text(json.dumps(good))
    (tmp_path / part).unlink()
    with pytest.raises(FileNotFoundError, match=f"lacks {part}, which {index.name} names"):
        read_weights(tmp_path)


def test_a_hub_file_known_not_to_be_there(tmp_path, monkeypatch):
    """Offline, a file that the repository never had taken for one that cannot be reached."""
    folder = cached(tmp_path, monkeypatch)
    with pytest.raises(FileNotFoundError, match=r"cannot be reached for config\.json: give"):
        find_file("someone/model", "config.json")
    none = folder.parent.parent / ".no_exist" / folder.name
    none.mkdir(parents=True)
    (none / "config.json").touch()
    assert find_file("someone/model", "config.json") is None
    (folder / "other.json").touch()
    assert find_file("someone/model", "config.json", "other.json").name == "other.json"


# ------------------------------------------------------------------------------ wrappings

WRAPPINGS = ("state_dict", "model_state_dict", "model", "teacher", "module")
PREFIXES = ("module.", "_orig_mod.", "model.")
BESIDE = {
    "epoch": 3,
    "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}},
    "args": Inert(),
    "student": {"w": torch.zeros(1)},
    "loss": torch.zeros(()),
}


@given(
    prefixes=st.lists(st.sampled_from(PREFIXES), max_size=3),
    wrappings=st.lists(
        st.tuples(st.sampled_from(WRAPPINGS), st.sets(st.sampled_from(sorted(BESIDE)))), max_size=3
    ),
    names=st.sets(
        st.from_regex(r"(visual|blocks\.\d|head)\.(weight|bias)", fullmatch=True), min_size=1
    ),
)
def test_any_wrapping_comes_off(prefixes, wrappings, names):
    """A wrapping inside another one, one prefix of two, or an optimiser's tensor among the rest."""
    state = {name: torch.full((2,), float(number)) for number, name in enumerate(sorted(names))}
    content = {"".join(prefixes) + name: tensor for name, tensor in state.items()}
    for name, beside in wrappings:
        content = {name: content} | {key: BESIDE[key] for key in beside}
    assert same(unwrapped(content, "x.pt"), state)


def test_a_prefix_of_some_names_stays():
    """A part of the model that is called `module` or `model` robbed of its name."""
    state = {"model.weight": torch.ones(1), "head.weight": torch.ones(2)}
    assert same(unwrapped({"model": state}, "x.pt"), state)


def test_what_is_beside_a_model_is_named(caplog):
    """A student's or an average's weights left out without a word."""
    with caplog.at_level("INFO"):
        unwrapped({"teacher": {"w": torch.ones(1)}, "student": {}, "epoch": 1}, "dino.pth")
    assert "dino.pth: read teacher, not student" in caplog.text


class Pickled(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 2)


@pytest.mark.parametrize("wrapping", [None, "model", "state_dict"])
def test_a_whole_pickled_model(wrapping, tmp_path):
    """Refused as no dictionary, or read as a model without tensors: the way out must be told."""
    content = Pickled() if wrapping is None else {wrapping: Pickled(), "epoch": 1}
    torch.save(content, tmp_path / "whole.pt")
    with pytest.raises(ValueError, match=r"whole\.pt: .*whole pickled model.*state_dict\(\)"):
        read_weights(tmp_path / "whole.pt")
