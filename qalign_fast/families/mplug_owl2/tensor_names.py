"""A model's sizes in, the name of every parameter's tensor in an upstream checkpoint out."""

from __future__ import annotations

from qalign_fast.families.mplug_owl2.sizes import ModelConfig

_VISION_LAYER = {
    "attention_norm": "input_layernorm",
    "qkv": "self_attn.query_key_value",
    "out": "self_attn.dense",
    "mlp_norm": "post_attention_layernorm",
    "fc1": "mlp.fc1",
    "fc2": "mlp.fc2",
}
_ABSTRACTOR_LAYER = {
    "query_norm": "norm1",
    "feature_norm": "normk",
    "q": "attention.query",
    "k": "attention.key",
    "v": "attention.value",
    "out": "output.out_proj",
    "mlp_norm": "output.norm2",
    "gate": "output.mlp.w1",
    "up": "output.mlp.w3",
    "inner_norm": "output.mlp.ffn_ln",
    "down": "output.mlp.w2",
}
_DECODER_LAYER = {
    "attention_norm_text": "input_layernorm.multiway.0.weight",
    "attention_norm_visual": "input_layernorm.multiway.1.weight",
    "q.weight": "self_attn.q_proj.weight",
    "k_text.weight": "self_attn.k_proj.multiway.0.weight",
    "k_visual.weight": "self_attn.k_proj.multiway.1.weight",
    "v_text.weight": "self_attn.v_proj.multiway.0.weight",
    "v_visual.weight": "self_attn.v_proj.multiway.1.weight",
    "o.weight": "self_attn.o_proj.weight",
    "mlp_norm_text": "post_attention_layernorm.multiway.0.weight",
    "mlp_norm_visual": "post_attention_layernorm.multiway.1.weight",
    "gate.weight": "mlp.gate_proj.weight",
    "up.weight": "mlp.up_proj.weight",
    "down.weight": "mlp.down_proj.weight",
}
HEAD = "lm_head.weight"


def table(config: ModelConfig) -> dict[str, str]:
    """Our parameter's name -> the upstream tensor's name, for a model of this size."""
    vision, abstractor = "model.vision_model", "model.visual_abstractor"
    names = {
        "vision.patch": f"{vision}.embeddings.patch_embed.weight",
        "vision.class_token": f"{vision}.embeddings.cls_token",
        "vision.positions": f"{vision}.embeddings.position_embedding",
        "abstractor.queries": f"{abstractor}.query_embeds",
        "abstractor.end_token": f"{abstractor}.vit_eos",
        "decoder.embed": "model.embed_tokens.weight",
        "decoder.norm": "model.norm.weight",
        "decoder.head": HEAD,
    }
    modules = {
        "vision.pre_norm": f"{vision}.embeddings.pre_layernorm",
        "vision.post_norm": f"{vision}.post_layernorm",
        "abstractor.project": f"{abstractor}.visual_fc",
    }
    for i in range(config.vision.layers):
        modules |= {f"vision.layers.{i}.{k}": f"{vision}.encoder.layers.{i}.{v}" for k, v in _VISION_LAYER.items()}
    for i in range(config.abstractor.layers):
        ours, theirs = f"abstractor.layers.{i}", f"{abstractor}.encoder.layers.{i}.crossattention"
        modules |= {f"{ours}.{k}": f"{theirs}.{v}" for k, v in _ABSTRACTOR_LAYER.items()}
        names[f"{ours}.query_positions"] = f"{theirs}.attention.q_pos_embed"
        names[f"{ours}.key_positions"] = f"{theirs}.attention.k_pos_embed"
    for i in range(config.decoder.layers):
        names |= {f"decoder.layers.{i}.{k}": f"model.layers.{i}.{v}" for k, v in _DECODER_LAYER.items()}
    for i in range(len(config.mlp)):
        modules[f"mlp.{i}"] = f"deepmlp.model.{i}.linear"
    if config.mlp:
        modules[f"mlp.{len(config.mlp)}"] = "deepmlp.output_layer"
    for ours, theirs in modules.items():
        names |= {f"{ours}.{part}": f"{theirs}.{part}" for part in ("weight", "bias")}
    return names
