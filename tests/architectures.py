"""Tiny random models of many architectures, made from transformers' own configurations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

import tiny
from selfcorrect.engines.chat import ChatFormat
from selfcorrect.engines.models import ResolvedModel, check_attention, load_model
from selfcorrect.engines.torch_engine import TorchEngine

LENGTH = 60
"""Positions of the longest episode that the table is made for."""
SMALL: dict[str, Any] = {
    "vocab_size": 261,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "bos_token_id": None,
    "eos_token_id": 4,
    "pad_token_id": 0,
}
EXPERTS = {
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
}
VISION = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0] * 4,
    "long_factor": [4.0] * 4,
    "rope_theta": 10_000.0,
    "original_max_position_embeddings": 32,
}
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("llama", {}),
    "Llama, rope llama3": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 10_000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 16,
            }
        },
    ),
    "Llama, rope yarn": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10_000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 32,
            }
        },
    ),
    "Llama, rope dynamic": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "dynamic",
                "rope_theta": 10_000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 32,
            }
        },
    ),
    "Qwen2": ("qwen2", {}),
    "Qwen3": ("qwen3", {}),
    "Qwen3-MoE": ("qwen3_moe", EXPERTS),
    "Qwen3-Next": ("qwen3_next", {**EXPERTS, "layer_types": ["linear_attention", "full_attention"]}),
    "Mistral, window of 16": ("mistral", {"sliding_window": 16}),
    "Mistral, window of 4096": ("mistral", {"sliding_window": 4096}),
    "Mixtral": ("mixtral", EXPERTS),
    "Gemma": ("gemma", {}),
    "Gemma 2, window of 4096": ("gemma2", {"sliding_window": 4096}),
    "Gemma 3, window of 16": ("gemma3_text", {"sliding_window": 16}),
    "Gemma 3, window of 4096": ("gemma3_text", {"sliding_window": 4096}),
    "Phi": ("phi", {}),
    "Phi-3": ("phi3", {}),
    "Phi-3, longrope beyond its first length": (
        "phi3",
        {"rope_parameters": LONGROPE, "original_max_position_embeddings": 32},
    ),
    "Phi-3, longrope within it": (
        "phi3",
        {
            "rope_parameters": {**LONGROPE, "original_max_position_embeddings": 64},
            "original_max_position_embeddings": 64,
        },
    ),
    "OLMo 2": ("olmo2", {}),
    "SmolLM3": ("smollm3", {}),
    "GLM-4": ("glm4", {}),
    "GLM-4.5 (MoE)": ("glm4_moe", EXPERTS),
    "gpt-oss, window of 16": ("gpt_oss", {**EXPERTS, "sliding_window": 16}),
    "gpt-oss, window of 4096": ("gpt_oss", {**EXPERTS, "sliding_window": 4096}),
    "Granite, logits_scaling of 1": ("granite", {}),
    "Granite, logits_scaling of 8": ("granite", {"logits_scaling": 8.0}),
    "StarCoder2": ("starcoder2", {}),
    "Cohere": ("cohere", {}),
    "StableLM": ("stablelm", {}),
    "DeepSeek-V3": (
        "deepseek_v3",
        {
            **EXPERTS,
            "n_group": 1,
            "topk_group": 1,
            "kv_lora_rank": 16,
            "q_lora_rank": 16,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8,
            "v_head_dim": 8,
            "first_k_dense_replace": 1,
            "num_key_value_heads": 4,
        },
    ),
    "GPT-2": ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}),
    "GPT-NeoX (Pythia)": ("gpt_neox", {}),
    "OPT": ("opt", {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    "BLOOM (alibi)": ("bloom", {"n_layer": 2, "n_head": 4}),
    "MPT (alibi)": ("mpt", {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 128}),
    "Falcon": ("falcon", {"new_decoder_architecture": False, "head_dim": None}),
    "Falcon, alibi": ("falcon", {"alibi": True, "new_decoder_architecture": False, "head_dim": None}),
    "Falcon-H1 (hybrid)": ("falcon_h1", {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8}),
    "Mamba": ("mamba", {}),
    "Mamba 2": ("mamba2", {"num_heads": 8, "head_dim": 8, "n_groups": 1}),
    "Jamba (hybrid)": (
        "jamba",
        {**EXPERTS, "attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False},
    ),
    "LFM2 (hybrid)": ("lfm2", {"layer_types": ["conv", "full_attention"]}),
    "Bamba (hybrid)": ("bamba", {"attn_layer_indices": [1], "mamba_n_heads": 8, "mamba_d_head": 8}),
    "RecurrentGemma": ("recurrent_gemma", {}),
    "RWKV": ("rwkv", {}),
    "Zamba 2 (hybrid)": (
        "zamba2",
        {
            "layers_block_type": ["mamba", "hybrid"],
            "mamba_ngroups": 1,
            "n_mamba_heads": 8,
            "layer_types": ["mamba", "hybrid"],
        },
    ),
    "Nemotron": ("nemotron", {}),
    "Nemotron-H (hybrid)": ("nemotron_h", {}),
    "Granite 4 (hybrid)": (
        "granitemoehybrid",
        {**EXPERTS, "mamba_n_heads": 8, "mamba_d_head": 8, "layer_types": ["mamba", "attention"]},
    ),
    "MiniMax": ("minimax", {**EXPERTS, "layer_types": ["linear_attention", "full_attention"]}),
    "Llama 4, chunked": ("llama4_text", {**EXPERTS, "attention_chunk_size": 16, "intermediate_size_mlp": 48}),
    "Gemma 3 with its vision tower": (
        "gemma3",
        {
            "text_config": {**SMALL, "sliding_window": 4096},
            "vision_config": {**VISION, "image_size": 28, "patch_size": 14},
            "mm_tokens_per_image": 4,
        },
    ),
    "Gemma 4 with its vision tower": (
        "gemma4",
        {
            "text_config": {
                **SMALL,
                "sliding_window": 4096,
                "global_head_dim": 8,
                "hidden_size_per_layer_input": 8,
                "vocab_size_per_layer_input": 261,
            },
            "vision_config": {**VISION, "num_key_value_heads": 2, "head_dim": 8},
            "audio_config": None,
        },
    ),
    "Fuyu": ("fuyu", {"text_config": {**SMALL, "model_type": "persimmon"}, "image_size": 30, "patch_size": 15}),
}


def config(name: str) -> Any:
    """Its configuration. ``None`` takes a value of ``SMALL`` out."""
    kind, overrides = ARCHITECTURES[name]
    values = {key: value for key, value in {**SMALL, **overrides}.items() if value is not None or key.endswith("_id")}
    return transformers.AutoConfig.for_model(kind, **values)


def engine(made: Any, path: Path) -> TorchEngine:
    """On random weights, saved to a new directory and loaded from there.

    Raises:
        ModelError: the architecture is refused.
    """
    check_attention(made, LENGTH)
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(made).save_pretrained(path)
    model = load_model(ResolvedModel(str(path), "directory"), "float32", "cpu")
    return TorchEngine(model, ChatFormat(tiny.tokenizer()), tiny.TorchEngineConfig(device="cpu"))
