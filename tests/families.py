"""Chat templates of the families that people train: what each does with turns and thinking, in few words of our own."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tokenizers_in_process import byte_level

_LAST_USER = (
    "{% set ns = namespace(last=-1) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}"
    "{% endif %}{% endfor %}"
)
_DROP = (
    "{% set c = m.content %}{% if m.role == 'assistant' and '</think>' in c %}"
    "{% set c = c.split('</think>')[-1].lstrip('\n') %}{% endif %}"
)
_CHATML_TURN = "{{ '<|im_start|>' + m.role + '\n' + c + '<|im_end|>\n' }}"
_CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


@dataclass(frozen=True)
class Family:
    """One family: its template, its tokens, and what a model's generation config says."""

    template: str
    specials: tuple[str, ...]
    eos: str
    ends: tuple[str, ...] = ()
    """End tokens of the generation config."""
    bos: str | None = None
    plain: tuple[str, ...] = ("<think>", "</think>")
    """Added tokens that are not special."""
    off: dict[str, Any] = field(default_factory=dict)
    """Template variables that switch thinking off."""

    def tokenizer(self) -> Any:
        roles = {"eos_token": self.eos, **({"bos_token": self.bos} if self.bos else {})}
        made = byte_level(self.template, list(self.specials), **roles)
        made.add_tokens([t for t in self.plain if t in self.template])
        return made

    def end_ids(self, tokenizer: Any) -> tuple[int, ...]:
        return tuple(tokenizer.convert_tokens_to_ids(list(self.ends or (self.eos,))))


FAMILIES = {
    "Qwen3": Family(
        _LAST_USER
        + "{% for m in messages %}{% if loop.index0 < ns.last %}"
        + _DROP.replace("{% set c = m.content %}", "{% set c = m.content %}", 1)
        + _CHATML_TURN
        + "{% else %}{% set c = m.content %}"
        + _CHATML_TURN
        + "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
        "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}",
        _CHATML,
        "<|im_end|>",
        ("<|im_end|>", "<|endoftext|>"),
        off={"enable_thinking": False},
    ),
    "Qwen3.5": Family(  # the prompt opens the thinking
        _LAST_USER
        + "{% for m in messages %}"
        + _DROP
        + _CHATML_TURN
        + "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
        "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}"
        "{% else %}{{ '<think>\n' }}{% endif %}{% endif %}",
        _CHATML,
        "<|im_end|>",
        ("<|im_end|>", "<|endoftext|>"),
        off={"enable_thinking": False},
    ),
    "R1-Distill": Family(
        "{{ bos_token }}{% for m in messages %}"
        + _DROP
        + "{% if m.role == 'user' %}{{ '<｜User｜>' + c }}{% elif m.role == 'assistant' %}"
        "{{ '<｜Assistant｜>' + c + '<｜end▁of▁sentence｜>' }}{% else %}{{ c }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\n' }}{% endif %}",
        ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"),
        "<｜end▁of▁sentence｜>",
        bos="<｜begin▁of▁sentence｜>",
    ),
    "gpt-oss": Family(
        "{{ '<|start|>system<|message|>Reasoning: ' + (reasoning_effort or 'medium') + '\n# Valid channels: analysis, commentary, "
        "final.<|end|>' }}{% for m in messages %}{% if m.role == 'assistant' %}"
        "{% if '<|channel|>analysis<|message|>' in m.content %}{{ raise_exception('channel tags in content') }}{% endif %}"
        "{{ '<|start|>assistant<|channel|>final<|message|>' + m.content }}"
        "{{ '<|return|>' if loop.last and not add_generation_prompt else '<|end|>' }}"
        "{% else %}{{ '<|start|>' + m.role + '<|message|>' + m.content + '<|end|>' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}",
        ("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|return|>", "<|call|>", "<|endoftext|>"),
        "<|return|>",
        ("<|return|>", "<|call|>", "<|endoftext|>"),
    ),
    "Nemotron Nano 2": Family(
        "{% set ns = namespace(think=true) %}{% for m in messages %}{% if m.role != 'assistant' and '/no_think' in m.content %}"
        "{% set ns.think = false %}{% endif %}{% endfor %}{{ '<SPECIAL_10>System\n\n\n' }}"
        "{% for m in messages %}{% if m.role == 'assistant' %}{% set c = m.content %}{% if '</think>' in c %}"
        "{% set c = c.split('</think>')[1] %}{% endif %}{{ '<SPECIAL_11>Assistant\n' + c.strip() + '\n<SPECIAL_12>\n\n' }}"
        "{% else %}{{ '<SPECIAL_11>User\n' + m.content.replace('/no_think', '').strip() + '\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<SPECIAL_11>Assistant\n' }}{{ '<think>\n\n' if ns.think else '<think></think>' }}"
        "{% endif %}",
        ("<SPECIAL_10>", "<SPECIAL_11>", "<SPECIAL_12>"),
        "<SPECIAL_12>",
    ),
    "LFM2.5": Family(
        "{{ bos_token }}{% set preserve_thinking = preserve_thinking | default(false) %}"
        + _LAST_USER
        + "{% for m in messages %}{% set c = m.content %}{% if m.role == 'assistant' and '</think>' in c and not "
        "(preserve_thinking or loop.index0 > ns.last) %}{% set c = c.split('</think>')[-1] | trim %}{% endif %}"
        + _CHATML_TURN
        + "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
        ("<|startoftext|>", *_CHATML),
        "<|im_end|>",
        bos="<|startoftext|>",
    ),
    "SmolLM3": Family(
        "{% set think = enable_thinking | default(true) %}{{ '<|im_start|>system\nToday: ' + strftime_now('%d %B %Y') + "
        "'\nReasoning Mode: ' + ('/think' if think else '/no_think') + '<|im_end|>\n' }}{% for m in messages %}"
        "{% set c = m.content %}{% if m.role == 'assistant' %}{% set c = ('' if think else '<think>\n\n</think>\n') + "
        "c.lstrip('\n') %}{% endif %}"
        + _CHATML_TURN
        + "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
        "{{ '' if think else '<think>\n\n</think>\n' }}{% endif %}",
        _CHATML,
        "<|im_end|>",
        off={"enable_thinking": False},
    ),
    "GLM-4.5": Family(
        "[gMASK]<sop>{% for m in messages %}"
        + _DROP
        + "{% if m.role == 'assistant' %}{{ '<|assistant|>\n<think></think>\n' + c.strip() }}{% else %}"
        "{{ '<|' + m.role + '|>\n' + c }}{{ '/nothink' if enable_thinking is defined and not enable_thinking else '' }}"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>"
        "{{ '\n<think></think>' if enable_thinking is defined and not enable_thinking else '' }}{% endif %}",
        ("<|endoftext|>", "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"),
        "<|endoftext|>",
        ("<|endoftext|>", "<|user|>", "<|observation|>"),
        off={"enable_thinking": False},
    ),
    "GLM-4": Family(  # the next role's token ends a turn
        "[gMASK]<sop>{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
        ("<|endoftext|>", "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"),
        "<|endoftext|>",
        ("<|endoftext|>", "<|user|>", "<|observation|>"),
    ),
    "Gemma 4": Family(
        "{% macro spoken(text) %}{% set ns = namespace(out='') %}{% for part in text.split('<channel|>') %}"
        "{% set ns.out = ns.out + part.split('<|channel>')[0] %}{% endfor %}{{ ns.out | trim }}{% endmacro %}{{ bos_token }}"
        "{% for m in messages %}{{ '<|turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' }}"
        "{{ spoken(m.content) if m.role == 'assistant' else m.content | trim }}{{ '<turn|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|turn>model\n' }}"
        "{% if not enable_thinking | default(false) %}{{ '<|channel>thought\n<channel|>' }}{% endif %}{% endif %}",
        ("<bos>", "<eos>", "<|turn>", "<turn|>", "<|channel>", "<channel|>"),
        "<eos>",
        ("<eos>", "<turn|>"),
        bos="<bos>",
    ),
    "Llama 3": Family(
        "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim "
        "+ '<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}"
        "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
        (
            "<|begin_of_text|>",
            "<|end_of_text|>",
            "<|eom_id|>",
            "<|eot_id|>",
            "<|start_header_id|>",
            "<|end_header_id|>",
        ),
        "<|eot_id|>",
        ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"),
        bos="<|begin_of_text|>",
    ),
    "Gemma": Family(
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        "{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' + m.content | trim + '<end_of_turn>\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}",
        ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
        "<eos>",
        ("<eos>", "<end_of_turn>"),
        bos="<bos>",
    ),
    "Phi-4-mini": Family(
        "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content + '<|end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% else %}{{ eos_token }}{% endif %}",
        ("<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
        "<|endoftext|>",
        ("<|endoftext|>", "<|end|>"),
    ),
    "Mistral": Family(
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST]' + m.content + '[/INST]' }}"
        "{% elif m.role == 'assistant' %}{{ m.content + eos_token }}{% endif %}{% endfor %}",
        ("<s>", "</s>", "[INST]", "[/INST]"),
        "</s>",
        bos="<s>",
    ),
    "Magistral": Family(
        "{{ bos_token }}{{ '[SYSTEM_PROMPT]Think between [THINK] and [/THINK].[/SYSTEM_PROMPT]' }}{% for m in messages %}"
        "{% if m.role == 'user' %}{{ '[INST]' + m.content + '[/INST]' }}{% elif m.role == 'assistant' %}"
        "{{ m.content.split('[/THINK]')[-1] + eos_token }}{% endif %}{% endfor %}",
        ("<s>", "</s>", "[INST]", "[/INST]", "[THINK]", "[/THINK]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"),
        "</s>",
        bos="<s>",
    ),
    "closed by the next turn": Family(  # the end token stands only before another user's turn
        "{% for m in messages %}{% if m.role == 'user' %}{{ '</s>' if not loop.first else '' }}{{ '<|user|>' + m.content }}"
        "{% else %}{{ '<|assistant|>' + m.content }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}",
        ("</s>", "<|user|>", "<|assistant|>"),
        "</s>",
    ),
}
