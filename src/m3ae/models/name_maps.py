"""Which tensor of which family of weights is which of ours: tables, nothing else.

A rule is (pattern, name): the pattern takes a whole tensor name; the name may refer to its groups.
None drops it. `.scale` marks a layer-scale vector, folded into the layer before it on loading.
Queries, keys and values that a family holds apart are still apart here; `joined` joins them.
"""

import re
from dataclasses import dataclass

Rules = list[tuple[str, str | None]]


@dataclass(frozen=True)
class Family:
    """Files of one kind: below which of these prefixes their tensors stand, and under which names.

    Names outside the prefix must match `beside`, and are dropped.
    """

    prefixes: tuple[str, ...]
    rules: Rules
    beside: str


_WB = r"\.(weight|bias)"
_WHOLE = r"attention.query_key_value.\1"
_PARTS = [(f"{name[0]}_proj{_WB}", rf"attention.{name}.\1") for name in ("query", "key", "value")]


def _under(prefix: str, ours: str, rules: Rules) -> Rules:
    """Rules for names below `prefix`, giving names below `ours`; a prefix may hold a group."""
    groups = re.compile(prefix).groups

    def place(name: str) -> str:  # the prefix's groups come first, so the rules' own move on
        return ours + re.sub(r"\\(\d)", lambda match: f"\\{int(match[1]) + groups}", name)

    placed = []
    for pattern, name in rules:
        placed.append((f"{prefix}(?:{pattern})", None if name is None else place(name)))
    return placed


# Blocks: names below a block's own, such as "transformer.resblocks.3.".
_OPENAI_BLOCK = [  # of the reference's CLIP and MIM decoder alike
    (r"attn\.in_proj_(weight|bias)", _WHOLE),
    (r"attn\.out_proj" + _WB, r"attention.out.\1"),
    (r"ln_1" + _WB, r"attention_norm.\1"),
    (r"ln_2" + _WB, r"feed_forward_norm.\1"),
    (r"mlp\.c_fc" + _WB, r"feed_forward.up.\1"),
    (r"mlp\.c_proj" + _WB, r"feed_forward.down.\1"),
]
_CLIP_HF_BLOCK = [
    *_under(r"self_attn\.", "", _PARTS),
    (r"self_attn\.out_proj" + _WB, r"attention.out.\1"),
    (r"layer_norm1" + _WB, r"attention_norm.\1"),
    (r"layer_norm2" + _WB, r"feed_forward_norm.\1"),
    (r"mlp\.fc1" + _WB, r"feed_forward.up.\1"),
    (r"mlp\.fc2" + _WB, r"feed_forward.down.\1"),
]
_TIMM_BLOCK = [
    (r"norm1" + _WB, r"attention_norm.\1"),
    (r"norm2" + _WB, r"feed_forward_norm.\1"),
    (r"attn\.qkv" + _WB, _WHOLE),
    (r"attn\.proj" + _WB, r"attention.out.\1"),
    (r"mlp\.fc1" + _WB, r"feed_forward.up.\1"),
    (r"mlp\.fc2" + _WB, r"feed_forward.down.\1"),
    (r"ls1\.gamma", r"attention.out.scale"),
    (r"ls2\.gamma", r"feed_forward.down.scale"),
]
_VIT_HF_BLOCK = [
    (r"attention\.attention\.(query|key|value)" + _WB, r"attention.\1.\2"),
    *_under(r"attention\.", "", _PARTS),
    (r"attention\.(?:output\.dense|o_proj)" + _WB, r"attention.out.\1"),
    (r"(?:norm1|layernorm_before)" + _WB, r"attention_norm.\1"),
    (r"(?:norm2|layernorm_after)" + _WB, r"feed_forward_norm.\1"),
    (r"(?:mlp\.fc1|intermediate\.dense)" + _WB, r"feed_forward.up.\1"),
    (r"(?:mlp\.fc2|output\.dense)" + _WB, r"feed_forward.down.\1"),
    (r"layer_scale1\.lambda1", r"attention.out.scale"),
    (r"layer_scale2\.lambda1", r"feed_forward.down.scale"),
]
_BERT_BLOCK = [  # also of the fusion layers
    (r"attention\.self\.(query|key|value)" + _WB, r"attention.\1.\2"),
    (r"attention\.output\.dense" + _WB, r"attention.out.\1"),
    (r"attention\.output\.LayerNorm" + _WB, r"attention_norm.\1"),
    (r"intermediate\.dense" + _WB, r"feed_forward.up.\1"),
    (r"output\.dense" + _WB, r"feed_forward.down.\1"),
    (r"output\.LayerNorm" + _WB, r"feed_forward_norm.\1"),
]
_FUSION_BLOCK = [
    *_BERT_BLOCK,
    (r"crossattention\.self\.(query|key|value)" + _WB, r"cross_attention.\1.\2"),
    (r"crossattention\.output\.dense" + _WB, r"cross_attention.out.\1"),
    (r"crossattention\.output\.LayerNorm" + _WB, r"cross_attention_norm.\1"),
]

# Encoders.
CLIP_OPENAI = [
    (r"class_embedding", "class_token"),
    (r"positional_embedding", "position_embedding"),
    (r"conv1\.weight", "patch_embedding.weight"),
    (r"ln_pre" + _WB, r"norm_pre.\1"),
    (r"ln_post" + _WB, r"norm_post.\1"),
    (r"proj", None),  # output projection: the published model uses tokens before it
    *_under(r"transformer\.resblocks\.(\d+)\.", r"blocks.\1.", _OPENAI_BLOCK),
]
CLIP_HF = [
    (r"embeddings\.class_embedding", "class_token"),
    (r"embeddings\.position_embedding\.weight", "position_embedding"),
    (r"embeddings\.patch_embedding\.weight", "patch_embedding.weight"),
    (r"embeddings\.position_ids", None),
    (r"pre_layrnorm" + _WB, r"norm_pre.\1"),
    (r"post_layernorm" + _WB, r"norm_post.\1"),
    *_under(r"encoder\.layers\.(\d+)\.", r"blocks.\1.", _CLIP_HF_BLOCK),
]
VIT_TIMM = [  # timm, DeiT, DINO, DINOv2, MAE
    (r"cls_token", "class_token"),
    (r"dist_token", "distillation_token"),  # dropped with its position
    (r"pos_embed", "position_embedding"),
    (r"patch_embed\.proj" + _WB, r"patch_embedding.\1"),
    (r"norm" + _WB, r"norm_post.\1"),
    *_under(r"blocks\.(\d+)\.", r"blocks.\1.", _TIMM_BLOCK),
    (r"mask_token|(head|head_dist|fc_norm)\..*", None),
    (r"decoder_(pos_embed|(embed|norm|pred)\..*|blocks\..*)", None),  # of MAE
]
VIT_HF = [  # transformers' ViT, DeiT and DINOv2: the names of its files, and those of its modules
    (r"embeddings\.cls_token", "class_token"),
    (r"embeddings\.distillation_token", "distillation_token"),
    (r"embeddings\.position_embeddings", "position_embedding"),
    (r"embeddings\.patch_embeddings\.projection" + _WB, r"patch_embedding.\1"),
    (r"layernorm" + _WB, r"norm_post.\1"),
    # On disk `encoder.layer.`, in memory `layers.` too.
    *_under(r"(?:encoder\.layer|layers)\.(\d+)\.", r"blocks.\1.", _VIT_HF_BLOCK),
    (r"embeddings\.mask_token|(pooler|\w*classifier|decoder)\..*", None),
]
BERT = [
    (r"embeddings\.word_embeddings\.weight", "word_embedding.weight"),
    (r"embeddings\.position_embeddings\.weight", "position_embedding.weight"),
    (r"embeddings\.token_type_embeddings\.weight", "type_embedding.weight"),
    (r"embeddings\.LayerNorm" + _WB, r"embedding_norm.\1"),
    (r"embeddings\.position_ids", None),
    (r"(pooler|cls|score|\w*(head|classifier|outputs|proj|projection|projector))\..*", None),
    *_under(r"encoder\.layer\.(\d+)\.", r"blocks.\1.", _BERT_BLOCK),
]

# What stands beside the image tower of a CLIP, and beside a plain ViT.
_CLIP_REST = r"(text|text_model|transformer|token_embedding|ln_final|visual_projection"
_CLIP_REST += r"|text_projection|logit_scale|logit_bias|positional_embedding|context_length"
_CLIP_REST += r"|input_resolution|vocab_size|attn_mask|classifier|pooler|visual\.head)(\..*)?"
_VIT_REST = r"(head|pooler|decoder|\w*classifier)\..*"
IMAGE_FAMILIES = {
    "clip": (
        Family(("visual.", ""), CLIP_OPENAI, _CLIP_REST),
        Family(("vision_model.", ""), CLIP_HF, _CLIP_REST),
    ),
    "vit": (
        Family(("backbone.", ""), VIT_TIMM, _VIT_REST),
        Family(("visual.trunk.",), VIT_TIMM, _CLIP_REST),  # of a CLIP, as open_clip holds it
        Family(("vit.", "deit.", "dinov2.", ""), VIT_HF, _VIT_REST),
    ),
}
# Beside a text encoder may stand whatever it was trained with.
TEXT_FAMILIES = (Family(("roberta.", "bert.", "text.transformer.", ""), BERT, r".*"),)

REFERENCE = [
    *_under(r"vision_encoder\.visual\.", "image_encoder.", CLIP_OPENAI),
    (r"vision_encoder\.(positional_embedding|token_embedding\.weight|ln_final\..*)", None),
    *_under(r"language_encoder\.", "text_encoder.", BERT),
    (r"multi_modal_language_proj" + _WB, r"fusion.text_projection.\1"),
    (r"multi_modal_vision_proj" + _WB, r"fusion.image_projection.\1"),
    (r"modality_type_embeddings\.weight", "fusion.type_embedding.weight"),
    *_under(r"multi_modal_language_layers\.(\d+)\.", r"fusion.text_layers.\1.", _FUSION_BLOCK),
    *_under(r"multi_modal_vision_layers\.(\d+)\.", r"fusion.image_layers.\1.", _FUSION_BLOCK),
    (r"multi_modal_language_pooler\.dense" + _WB, r"fusion.text_pooler.\1"),
    (r"multi_modal_vision_pooler\.dense" + _WB, r"fusion.image_pooler.\1"),
    (r"mlm_head\.transform\.dense" + _WB, r"mlm_head.dense.\1"),
    (r"mlm_head\.transform\.LayerNorm" + _WB, r"mlm_head.norm.\1"),
    (r"mlm_head\.decoder\.weight", "mlm_head.vocabulary.weight"),
    (r"mlm_head\.bias", "mlm_head.vocabulary.bias"),
    (r"mim_head\.mask_token", "mim_head.mask_token"),
    (r"mim_head\.decoder_pos_embed", None),  # after the check in convert_reference
    (r"mim_head\.decoder_embed" + _WB, r"mim_head.embed.\1"),
    *_under(r"mim_head\.decoder\.resblocks\.(\d+)\.", r"mim_head.blocks.\1.", _OPENAI_BLOCK),
    (r"mim_head\.decoder_norm" + _WB, r"mim_head.norm.\1"),
    (r"mim_head\.decoder_pred" + _WB, r"mim_head.pixels.\1"),
    (r"itm_head\.fc" + _WB, r"itm_head.classes.\1"),
    (r"vqa_head\.(\d)" + _WB, r"vqa_head.\1.\2"),
    (r"cls_head\.(\d)" + _WB, r"cls_head.\1.\2"),
    (r"irtr_head" + _WB, r"retrieval_head.\1"),
]
