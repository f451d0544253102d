"""Small tokenizers with the chat templates met in practice, built without a network."""

from __future__ import annotations

from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n'"
    " + m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
QWEN3 = (
    "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m['role'] == 'user' %}{% set ns.last = loop.index0 %}"
    "{% endif %}{% endfor %}{% for m in messages %}{% set content = m['content'] %}"
    "{% if m['role'] == 'assistant' and '</think>' in content and loop.index0 < ns.last %}"
    "{% set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{% for m in messages %}{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n'"
    " + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
MARKDOWN = (
    "{% for m in messages %}{{ '### ' + m['role'] + '\n' + m['content'] + '\n\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### assistant\n' }}{% endif %}"
)
LLAMA2 = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + m['content'] | trim + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] | trim + ' ' + eos_token }}{% endif %}{% endfor %}"
)


def byte_level(template: str | None, specials: list[str], **roles: str) -> Any:
    """A token per byte, plus special tokens; ``roles`` are eos_token, bos_token, pad_token."""
    vocabulary = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in specials])
    return PreTrainedTokenizerFast(tokenizer_object=core, chat_template=template, **roles)


def metaspace(template: str, specials: list[str], **roles: str) -> Any:
    """A token per character with the space mark of SentencePiece, which prefixes a text with a space."""
    characters = ["<unk>", "▁", "\n", *map(chr, range(33, 127))]
    core = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(characters)}, merges=[], unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    core.decoder = decoders.Metaspace()
    core.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in specials])
    return PreTrainedTokenizerFast(tokenizer_object=core, chat_template=template, **roles)


def chatml(template: str | None = CHATML, **roles: str) -> Any:
    """Qwen-like: pad differs from eos unless asked otherwise."""
    roles = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", **roles}
    return byte_level(template, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], **roles)


def llama3() -> Any:
    """BOS in the template; eos is not the end of turn; no pad token."""
    specials = ["<|begin|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    return byte_level(LLAMA3, specials, bos_token="<|begin|>", eos_token="<|end_of_text|>")


def gemma() -> Any:
    """No system role; roles renamed."""
    specials = ["<bos>", "<eos>", "<pad>", "<start_of_turn>", "<end_of_turn>"]
    return byte_level(GEMMA, specials, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>")


def llama2() -> Any:
    """BOS at every user turn, spaces around answers, SentencePiece-like tokens."""
    return metaspace(LLAMA2, ["<s>", "</s>"], bos_token="<s>", eos_token="</s>", pad_token="</s>")


def markdown() -> Any:
    """Turns marked by plain text; only the tokenizer's eos ends an answer."""
    return byte_level(MARKDOWN, ["</s>"], eos_token="</s>")
