"""Weight files in every layout that they come in: the right tensors, and nothing is executed."""

import copy

import pytest
import torch

from m3ae.config import ImageEncoderConfig
from m3ae.models.image_encoder import ImageEncoder
from m3ae.models.pretrained import load_image_encoder
from m3ae.models.weight_files import read_checkpoint, read_weights
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
    numbers = {"input_resolution", "context_length", "vocab_size"}
    assert same(
        read,
        {key: x.float() if key not in numbers else x for key, x in rounded.state_dict().items()},
    )
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
