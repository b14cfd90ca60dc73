"""The golden model: weights rebuilt from their recipe, and the config that fits them.

The recorded numbers come from running the reference (public commit 14da377) in float32 on a CPU.
"""

import math
import zlib
from functools import cache
from pathlib import Path

import torch

from m3ae.config import Config, load_config
from m3ae.models import M3AE
from m3ae.models.pretrained import convert_reference

ROOT = Path(__file__).parent.parent
GOLDEN = ROOT / "tests" / "golden"

TINY = """
model.image_encoder={weights: null, image_px: 64, width: 128, depth: 2, heads: 2}
model.text_encoder={weights: null, vocab_size: 200, width: 96, depth: 3, heads: 4, mlp_width: 384}
model.text_encoder={max_positions: 66, dropout: 0.0, attention_dropout: 0.0}
model.fusion={width: 96, depth: 4, heads: 4, dropout: 0.0, attention_dropout: 0.0}
model.mim={layer: 2, decoder_width: 48, decoder_depth: 2, decoder_heads: 3}
model.mlm={decoder_width: 48, decoder_depth: 2, decoder_heads: 3}
model.itm.group=2
data.text_length=16
train.batch_per_process=4
train.batch_global=4
eval.batch=4
""".strip().splitlines()


def tiny_config(*overrides: str) -> Config:
    """The paper's config at the size of the golden model, dropout 0."""
    return load_config(ROOT / "configs/pretrain/m3ae.yaml", [*TINY, *overrides])


@cache
def golden(name: str = "golden_tiny") -> dict:
    """One of the recorded files."""
    return torch.load(GOLDEN / f"{name}.pt", weights_only=True)


def recipe_tensor(key: str, shape: list[int]) -> torch.Tensor:
    """The reference's tensor of that name by the recipe in tests/golden/README.md."""
    if key.endswith("position_ids"):
        return torch.arange(shape[1])[None]
    if key == "mim_head.decoder_pos_embed":
        return golden()["decoder_pos_embed"]
    n = torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(key.encode())))
    if len(shape) == 1:
        return 1 + 0.1 * n if key.endswith(".weight") else 0.1 * n
    if any(
        word in key
        for word in ("embeddings", "token_embedding", "positional_embedding", "mask_token")
    ):
        return 0.5 * n
    scale = 1 / math.sqrt(math.prod(shape[1:]))
    if key.endswith(("attention.output.dense.weight", "attn.out_proj.weight")):
        scale *= 0.25
    return n * scale


def golden_state(heads: bool = False) -> dict[str, torch.Tensor]:
    """The golden model's weights under the reference's names, downstream heads on request."""
    downstream = ("vqa_head", "cls_head", "irtr_head", "mlc_head", "rank_output")
    shapes = golden()["keys_and_shapes"]
    return {
        key: recipe_tensor(key, shape)
        for key, shape in shapes.items()
        if heads or not key.startswith(downstream)
    }


def golden_batch() -> dict[str, torch.Tensor]:
    """The golden inputs as a batch of ours; negatives from the corpus, as the reference draws."""
    inputs = golden()["inputs"]
    size = len(inputs["image"])
    labels = torch.tensor([1] * (size // 2) + [0] * (size - size // 2))[inputs["itm_perm"]]
    return {
        "image": inputs["image"],
        "text_ids": inputs["text_ids"],
        "text_keep": inputs["text_masks"].bool(),
        "mlm_ids": inputs["text_ids_mlm"],
        "mlm_labels": inputs["text_labels_mlm"],
        "patch_order": inputs["image_noise"].argsort(dim=1),
        "itm_match": labels.bool(),
        "negative_image": inputs["false_image_0"],
    }


@cache
def golden_model(share: bool = True) -> M3AE:
    """The golden model, ready. One for all tests: whoever changes it builds another."""
    model = M3AE(tiny_config(f"model.share={str(share).lower()}").model)
    model.load_state_dict(convert_reference(golden_state()))
    return model.eval()


def recorded_error(key: str) -> float:
    """Ten times what float32 lost against float64 when an output was recorded."""
    return 10 * golden()["fp32_vs_fp64_maxabs"][key]


def close(ours: torch.Tensor, wanted: torch.Tensor, absolute: float, what: str) -> None:
    """Fail unless equal to 1e-5 of each element, or of the largest where `absolute` is 0."""
    assert ours.shape == wanted.shape, what
    absolute = absolute or 1e-5 * float(wanted.abs().max())
    torch.testing.assert_close(
        ours.detach().to(wanted.dtype),
        wanted,
        rtol=1e-5,
        atol=absolute,
        msg=lambda text: f"{what}: {text}",
    )
