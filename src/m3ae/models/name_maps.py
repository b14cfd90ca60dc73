"""Which tensor of which family of weights is which of ours: tables, nothing else.

A rule is (pattern, name): the pattern takes a whole tensor name; the name may refer to its groups.
A tuple of names splits the tensor evenly along its first dimension; None drops it. `.scale` marks a
layer-scale vector, folded into the layer before it on loading.
"""

import re

Rules = list[tuple[str, str | tuple[str, ...] | None]]

_QKV = ("query", "key", "value")


def _split(prefix: str, kind: str) -> tuple[str, ...]:
    return tuple(f"{prefix}.{name}.{kind}" for name in _QKV)


_WB = r"\.(weight|bias)"

CLIP_OPENAI = [
    (r"class_embedding", "class_token"),
    (r"positional_embedding", "position_embedding"),
    (r"conv1\.weight", "patch_embedding.weight"),
    (r"ln_pre" + _WB, r"norm_pre.\1"),
    (r"ln_post" + _WB, r"norm_post.\1"),
    (r"proj", None),  # output projection: the published model uses tokens before it
]
_OPENAI_BLOCK = [  # of the reference's CLIP blocks and MIM decoder alike
    (r"resblocks\.(\d+)\.attn\.in_proj_weight", _split(r"blocks.\1.attention", "weight")),
    (r"resblocks\.(\d+)\.attn\.in_proj_bias", _split(r"blocks.\1.attention", "bias")),
    (r"resblocks\.(\d+)\.attn\.out_proj" + _WB, r"blocks.\1.attention.out.\2"),
    (r"resblocks\.(\d+)\.ln_1" + _WB, r"blocks.\1.attention_norm.\2"),
    (r"resblocks\.(\d+)\.ln_2" + _WB, r"blocks.\1.feed_forward_norm.\2"),
    (r"resblocks\.(\d+)\.mlp\.c_fc" + _WB, r"blocks.\1.feed_forward.up.\2"),
    (r"resblocks\.(\d+)\.mlp\.c_proj" + _WB, r"blocks.\1.feed_forward.down.\2"),
]
CLIP_OPENAI += [(r"transformer\." + pattern, name) for pattern, name in _OPENAI_BLOCK]
CLIP_HF = [
    (r"embeddings\.class_embedding", "class_token"),
    (r"embeddings\.position_embedding\.weight", "position_embedding"),
    (r"embeddings\.patch_embedding\.weight", "patch_embedding.weight"),
    (r"embeddings\.position_ids", None),
    (r"pre_layrnorm" + _WB, r"norm_pre.\1"),
    (r"post_layernorm" + _WB, r"norm_post.\1"),
    (r"encoder\.layers\.(\d+)\.self_attn\.q_proj" + _WB, r"blocks.\1.attention.query.\2"),
    (r"encoder\.layers\.(\d+)\.self_attn\.k_proj" + _WB, r"blocks.\1.attention.key.\2"),
    (r"encoder\.layers\.(\d+)\.self_attn\.v_proj" + _WB, r"blocks.\1.attention.value.\2"),
    (r"encoder\.layers\.(\d+)\.self_attn\.out_proj" + _WB, r"blocks.\1.attention.out.\2"),
    (r"encoder\.layers\.(\d+)\.layer_norm1" + _WB, r"blocks.\1.attention_norm.\2"),
    (r"encoder\.layers\.(\d+)\.layer_norm2" + _WB, r"blocks.\1.feed_forward_norm.\2"),
    (r"encoder\.layers\.(\d+)\.mlp\.fc1" + _WB, r"blocks.\1.feed_forward.up.\2"),
    (r"encoder\.layers\.(\d+)\.mlp\.fc2" + _WB, r"blocks.\1.feed_forward.down.\2"),
]
VIT_TIMM = [  # timm, DeiT, DINO, DINOv2
    (r"cls_token", "class_token"),
    (r"pos_embed", "position_embedding"),
    (r"patch_embed\.proj" + _WB, r"patch_embedding.\1"),
    (r"norm" + _WB, r"norm_post.\1"),
    (r"blocks\.(\d+)\.norm1" + _WB, r"blocks.\1.attention_norm.\2"),
    (r"blocks\.(\d+)\.norm2" + _WB, r"blocks.\1.feed_forward_norm.\2"),
    (r"blocks\.(\d+)\.attn\.qkv\.weight", _split(r"blocks.\1.attention", "weight")),
    (r"blocks\.(\d+)\.attn\.qkv\.bias", _split(r"blocks.\1.attention", "bias")),
    (r"blocks\.(\d+)\.attn\.proj" + _WB, r"blocks.\1.attention.out.\2"),
    (r"blocks\.(\d+)\.mlp\.fc1" + _WB, r"blocks.\1.feed_forward.up.\2"),
    (r"blocks\.(\d+)\.mlp\.fc2" + _WB, r"blocks.\1.feed_forward.down.\2"),
    (r"blocks\.(\d+)\.ls1\.gamma", r"blocks.\1.attention.out.scale"),
    (r"blocks\.(\d+)\.ls2\.gamma", r"blocks.\1.feed_forward.down.scale"),
    (r"mask_token|(head|fc_norm)\..*", None),
]
_HF = r"(?:encoder\.layer|layers)\.(\d+)\."  # on disk `encoder.layer.`, in memory `layers.` too
VIT_HF = [  # transformers' ViT, DeiT and DINOv2: the names of its files, and those of its modules
    (r"embeddings\.cls_token", "class_token"),
    (r"embeddings\.position_embeddings", "position_embedding"),
    (r"embeddings\.patch_embeddings\.projection" + _WB, r"patch_embedding.\1"),
    (r"layernorm" + _WB, r"norm_post.\1"),
    (_HF + r"attention\.attention\.(query|key|value)" + _WB, r"blocks.\1.attention.\2.\3"),
    (_HF + r"attention\.q_proj" + _WB, r"blocks.\1.attention.query.\2"),
    (_HF + r"attention\.k_proj" + _WB, r"blocks.\1.attention.key.\2"),
    (_HF + r"attention\.v_proj" + _WB, r"blocks.\1.attention.value.\2"),
    (_HF + r"attention\.(?:output\.dense|o_proj)" + _WB, r"blocks.\1.attention.out.\2"),
    (_HF + r"(?:norm1|layernorm_before)" + _WB, r"blocks.\1.attention_norm.\2"),
    (_HF + r"(?:norm2|layernorm_after)" + _WB, r"blocks.\1.feed_forward_norm.\2"),
    (_HF + r"(?:mlp\.fc1|intermediate\.dense)" + _WB, r"blocks.\1.feed_forward.up.\2"),
    (_HF + r"(?:mlp\.fc2|output\.dense)" + _WB, r"blocks.\1.feed_forward.down.\2"),
    (_HF + r"layer_scale1\.lambda1", r"blocks.\1.attention.out.scale"),
    (_HF + r"layer_scale2\.lambda1", r"blocks.\1.feed_forward.down.scale"),
    (r"embeddings\.mask_token|(pooler|classifier)\..*", None),
]
# One attention, feed-forward and their norms, as BERT names them; also the fusion layers.
_BERT_BLOCK = [
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


def _stack(rules: Rules, prefix: str, name: str) -> Rules:
    """Block rules under `prefix` (whose group 1 is the block number), named `name`."""

    def shift(template: str) -> str:  # the block number is group 1, so the rest move by one
        return re.sub(r"\\(\d)", lambda match: f"\\{int(match[1]) + 1}", template)

    return [(prefix + pattern, f"{name}{shift(template)}") for pattern, template in rules]


BERT = [
    (r"embeddings\.word_embeddings\.weight", "word_embedding.weight"),
    (r"embeddings\.position_embeddings\.weight", "position_embedding.weight"),
    (r"embeddings\.token_type_embeddings\.weight", "type_embedding.weight"),
    (r"embeddings\.LayerNorm\.(?:weight|gamma)", "embedding_norm.weight"),
    (r"embeddings\.LayerNorm\.(?:bias|beta)", "embedding_norm.bias"),
    (r"embeddings\.position_ids|pooler\..*|(lm_head|cls)\..*", None),
    *_stack(_BERT_BLOCK, r"encoder\.layer\.(\d+)\.", r"blocks.\1."),
]


def _under(prefix: str, ours: str, rules: list) -> Rules:
    """Rules for names below `prefix`, giving names of ours below `ours`."""
    placed = []
    for pattern, name in rules:
        if isinstance(name, tuple):
            name = tuple(ours + part for part in name)
        elif name is not None:
            name = ours + name
        placed.append((prefix + f"(?:{pattern})", name))
    return placed


REFERENCE = [
    *_under(r"vision_encoder\.visual\.", "image_encoder.", CLIP_OPENAI),
    (r"vision_encoder\.(positional_embedding|token_embedding\.weight|ln_final\..*)", None),
    *_under(r"language_encoder\.", "text_encoder.", BERT),
    (r"multi_modal_language_proj" + _WB, r"fusion.text_projection.\1"),
    (r"multi_modal_vision_proj" + _WB, r"fusion.image_projection.\1"),
    (r"modality_type_embeddings\.weight", "fusion.type_embedding.weight"),
    *_stack(_FUSION_BLOCK, r"multi_modal_language_layers\.(\d+)\.", r"fusion.text_layers.\1."),
    *_stack(_FUSION_BLOCK, r"multi_modal_vision_layers\.(\d+)\.", r"fusion.image_layers.\1."),
    (r"multi_modal_language_pooler\.dense" + _WB, r"fusion.text_pooler.\1"),
    (r"multi_modal_vision_pooler\.dense" + _WB, r"fusion.image_pooler.\1"),
    (r"mlm_head\.transform\.dense" + _WB, r"mlm_head.dense.\1"),
    (r"mlm_head\.transform\.LayerNorm" + _WB, r"mlm_head.norm.\1"),
    (r"mlm_head\.decoder\.weight", "mlm_head.vocabulary.weight"),
    (r"mlm_head\.bias", "mlm_head.vocabulary.bias"),
    (r"mim_head\.mask_token", "mim_head.mask_token"),
    (r"mim_head\.decoder_pos_embed", None),  # after the check in convert_reference
    (r"mim_head\.decoder_embed" + _WB, r"mim_head.embed.\1"),
    *_under(r"mim_head\.decoder\.", "mim_head.", _OPENAI_BLOCK),
    (r"mim_head\.decoder_norm" + _WB, r"mim_head.norm.\1"),
    (r"mim_head\.decoder_pred" + _WB, r"mim_head.pixels.\1"),
    (r"itm_head\.fc" + _WB, r"itm_head.classes.\1"),
    (r"vqa_head\.(\d)" + _WB, r"vqa_head.\1.\2"),
    (r"cls_head\.(\d)" + _WB, r"cls_head.\1.\2"),
    (r"irtr_head" + _WB, r"retrieval_head.\1"),
]
