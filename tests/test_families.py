"""Every family's template under every policy: accepted or refused, what ends an answer, and what attempt 2 sees."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from families import FAMILIES
from selfcorrect.engines.chat import ChatFormat, Rendering
from selfcorrect.engines.variables import variables_of
from selfcorrect.errors import ConfigError, ModelError

ENGINES_PAGE = Path(__file__).parent.parent / "docs" / "engines.md"
USER = [{"role": "user", "content": "What is 2 + 2?"}]
FIX = "There might be an error. Try again."
KEEPS = {"GLM-4", "Llama 3", "Gemma", "Phi-4-mini", "Mistral", "closed by the next turn", "SmolLM3"}
"""Families whose template shows earlier answers whole."""
THOUGHT = dict.fromkeys(FAMILIES, ("<think>\nHm. 4?\n</think>\n\n", "It is 4.")) | {
    "Qwen3.5": ("Hm. 4?\n</think>\n\n", "It is 4."),
    "R1-Distill": ("Hm. 4?\n</think>\n\n", "It is 4."),
    "Nemotron Nano 2": ("Hm. 4?\n</think>\n\n", "It is 4."),
    "gpt-oss": (
        "<|channel|>analysis<|message|>Hm. 4?<|end|><|start|>assistant<|channel|>final<|message|>",
        "It is 4.",
    ),
    "Gemma 4": ("<|channel>thought\nHm. 4?<channel|>", "It is 4."),
    "Magistral": ("[THINK]Hm. 4?[/THINK]", "It is 4."),
}
"""What a model of each family writes: its thinking and its answer."""


def made(name: str, **rendering: Any) -> ChatFormat:
    family = FAMILIES[name]
    tokenizer = family.tokenizer()
    return ChatFormat(tokenizer, family.end_ids(tokenizer), Rendering(**rendering))


def encode(chat: ChatFormat, text: str) -> tuple[int, ...]:
    return tuple(chat.tokenizer(text, add_special_tokens=False)["input_ids"])


def shown(chat: ChatFormat, ids: tuple[int, ...]) -> str:
    return str(chat.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def sampled(chat: ChatFormat, name: str) -> tuple[int, ...]:
    end = FAMILIES[name].eos if name not in {"GLM-4.5", "GLM-4"} else "<|user|>"
    end = {"Phi-4-mini": "<|end|>", "Gemma": "<end_of_turn>", "Gemma 4": "<turn|>"}.get(name, end)
    return (*encode(chat, "".join(THOUGHT[name])), chat.tokenizer.convert_tokens_to_ids(end))


def verdict(name: str, **rendering: Any) -> str:
    try:
        made(name, **rendering)
    except (ModelError, ConfigError) as error:
        return "needless" if "would be ignored" in str(error) else "refused"
    return "accepted"


@pytest.mark.parametrize("name", FAMILIES)
def test_the_default_refuses_exactly_the_templates_that_change_earlier_answers(name: str) -> None:
    assert verdict(name) == ("accepted" if name in KEEPS else "refused")
    if name not in KEEPS:
        with pytest.raises(ModelError, match=r"model\.history=keep.*model\.history=strip"):
            made(name)


@pytest.mark.parametrize("name", FAMILIES)
def test_keep_shows_the_sampled_tokens_and_closes_the_turn_once(name: str) -> None:
    chat = made(name, history="keep")
    start, answer = chat.begin(USER), sampled(chat, name)
    assert answer[-1] in chat.end_ids
    second = chat.extend(start, answer, FIX)
    assert second.ids[: len(start.ids) + len(answer)] == (*start.ids, *answer)
    after = second.ids[len(start.ids) + len(answer) :]
    assert FIX in shown(chat, after)
    # nothing closes the turn again before the user's words
    before_words = encode(chat, shown(chat, after).partition(FIX)[0])
    assert not set(before_words) & (chat.end_ids - {chat.tokenizer.bos_token_id}), shown(chat, after)


@pytest.mark.parametrize("name", sorted(set(FAMILIES) - KEEPS))
def test_strip_shows_what_the_template_shows(name: str) -> None:
    chat = made(name, history="strip")
    second = chat.extend(chat.begin(USER), sampled(chat, name), FIX)
    turns = [*USER, {"role": "assistant", "content": "It is 4."}, {"role": "user", "content": FIX}]
    template = chat.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert second.ids == encode(chat, template)
    assert "Hm. 4?" not in shown(chat, second.ids)
    third = chat.extend(second, sampled(chat, name), FIX)
    turns += [{"role": "assistant", "content": "It is 4."}, {"role": "user", "content": FIX}]
    assert third.ids == encode(
        chat, chat.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    )


@pytest.mark.parametrize("name", sorted(KEEPS))
def test_strip_is_refused_where_it_would_change_nothing(name: str) -> None:
    assert verdict(name, history="strip") == "needless"


@pytest.mark.parametrize("name", FAMILIES)
def test_the_answer_is_what_follows_the_thinking(name: str) -> None:
    chat = made(name, history="keep", template_kwargs={"enable_thinking": True} if name == "Gemma 4" else None)
    start, answer = chat.begin(USER), sampled(chat, name)
    parts = chat.parts(start.ids, answer)
    assert (parts.answer, parts.finished) == ("It is 4.", True)
    assert parts.thinking.startswith("Hm. 4?")
    thought = THOUGHT[name][0].rstrip("\n")
    assert chat.thinking_tokens(answer, parts) == len(encode(chat, thought))
    cut = chat.parts(start.ids, answer[: len(encode(chat, thought)) - 4])
    assert (cut.answer, cut.finished) == ("", False)


@pytest.mark.parametrize("name", [n for n, f in FAMILIES.items() if f.off])
def test_thinking_that_is_switched_off(name: str) -> None:
    off = FAMILIES[name].off
    chat = made(name, history="refuse" if name in KEEPS else "keep", template_kwargs=off)
    start = chat.begin(USER)
    assert chat.parts(start.ids, sampled(chat, "Llama 3")[:0]).finished, "the prompt closed the thinking itself"
    template = (
        chat.tokenizer.apply_chat_template(USER, tokenize=False, add_generation_prompt=True, **off)
        if ("strftime_now" not in FAMILIES[name].template)
        else None
    )
    assert template is None or start.ids == encode(chat, template)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("shown_as", ["user", "document"])
def test_an_answer_that_somebody_else_shows_needs_no_policy(name: str, shown_as: str) -> None:
    chat = made(name, shown_as=shown_as)
    start = chat.begin(USER)
    second = chat.extend(start, sampled(chat, name), FIX)
    text = shown(chat, second.ids)
    assert text.index("What is 2 + 2?") < text.index("It is 4.") < text.index(FIX)
    assert "Hm. 4?" not in text
    assert ("<document>" in text) == (shown_as == "document")
    assert text.endswith(shown(chat, start.ids).partition("What is 2 + 2?")[2]), "one turn of the user, then the answer"


@pytest.mark.parametrize(
    ("name", "variable", "reads"),
    [
        ("Llama 3", "enable_thinking", "none that can be set"),
        ("Qwen3", "enable_thinkin", "enable_thinking"),
        *(
            ("Qwen3", word, "enable_thinking")
            for word in ("think", "content", "role", "loop", "m", "c", "ns", "namespace")
        ),
    ],
)
def test_a_variable_that_the_template_does_not_read_is_refused(name: str, variable: str, reads: str) -> None:
    says = (
        rf"model\.template_kwargs\.{variable} would be ignored: .* \(it reads {reads}\); drop it, or correct the name"
    )
    with pytest.raises(ConfigError, match=says):
        made(name, history="keep", template_kwargs={variable: False})


@pytest.mark.parametrize(
    ("start", "read"),
    [
        ("{% set x = true %}{{ x }}", False),
        ("{% generation %}{{ x }}{% endgeneration %}{% for y in [] %}{% break %}{% endfor %}", True),
        ("{% set x = x | default(1) %}", True),
        ("{% if messages %}{% set x = 1 %}{% else %}{% set x = 2 %}{% endif %}{{ x }}", False),
        ("{% if messages %}{% set x = 1 %}{% elif messages %}{% set x = 2 %}{% endif %}{{ x }}", True),
        ("{% if 0 %}{% set x = 1 %}{% elif 1 %}{% set x = 2 %}{% else %}{% set x = 3 %}{% endif %}{{ x }}", False),
        ("{% set x %}text{% endset %}{{ x }}", False),
        ("{% for x, y in [] if x %}{{ x + y }}{% endfor %}", False),
        ("{% for y in [] %}{% set x = 1 %}{% endfor %}{{ x }}", True),
        ("{% with x = 1 %}{{ x }}{% endwith %}", False),
        ("{% set y = namespace(a=1) %}{% set y.a = x %}", True),
        ("{% macro f(x) %}{{ x }}{% endmacro %}{{ f(1) }}", False),
        ("{% macro f(y) %}{{ x }}{% endmacro %}{{ f(1) }}", True),
    ],
)
def test_a_variable_that_the_template_sets_first_is_not_read(start: str, read: bool) -> None:
    assert variables_of(start + FAMILIES["Llama 3"].template) == {"messages", "bos_token", "add_generation_prompt"} | (
        {"x"} if read else set()
    )


def test_the_policy_of_history_is_refused_where_answers_are_quoted() -> None:
    with pytest.raises(ConfigError, match=r"model\.history=strip would be ignored: task\.shown_as=user"):
        made("Qwen3", history="strip", shown_as="user")


def test_an_export_keeps_the_variables_as_defaults(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    chat = made("Qwen3", history="keep", template_kwargs={"enable_thinking": False})
    chat.save(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = loaded.apply_chat_template(USER, tokenize=False, add_generation_prompt=True)
    assert text.endswith("<think>\n\n</think>\n\n")
    assert chat.prompt_ids(USER) == encode(chat, text)
    thinking = loaded.apply_chat_template(USER, tokenize=False, add_generation_prompt=True, enable_thinking=True)
    assert not thinking.endswith("</think>\n\n")


@pytest.mark.parametrize("begun", ["", "Okay, ", "The user asks this. " * 9])
def test_a_prompt_may_open_and_begin_the_thinking(begun: str) -> None:
    family = replace(
        FAMILIES["R1-Distill"],
        template=FAMILIES["R1-Distill"].template.replace("<think>\n' }}", f"<think>\n{begun}' }}}}"),
    )
    tokenizer = family.tokenizer()
    chat = ChatFormat(tokenizer, family.end_ids(tokenizer), Rendering(history="strip"))
    start = chat.begin(USER)
    assert shown(chat, start.ids).endswith(f"<think>\n{begun}")
    ids = encode(chat, "4?\n</think>\n\n4")
    assert [(p.answer, p.finished) for p in (chat.parts(start.ids, ids), chat.parts(start.ids, ids[:3]))] == [
        ("4", True),
        ("", False),
    ]
    assert chat.parts(start.ids, chat.answer_ids("4")).answer == "4"


@pytest.mark.parametrize("question", ["What is <think>?", "What is 2 + 2?"])
def test_a_prompt_that_names_the_marker_opens_no_thinking(question: str) -> None:
    chat = made("Llama 3")
    start = chat.begin([{"role": "user", "content": question}])
    assert chat.parts(start.ids, encode(chat, "4")).finished


def test_markers_of_ones_own() -> None:
    chat = made("Llama 3", think_markers=("<plan>", "</plan>"))
    ids = encode(chat, "<plan>first add</plan>4")
    assert chat.parts(chat.begin(USER).ids, ids).answer == "4"


def table() -> str:
    """The table of docs/engines.md."""
    words = {"accepted": "yes", "refused": "no", "needless": "refused: changes nothing"}
    rows = ["| family | `refuse` (default) | `keep` | `strip` | ends of an answer |", "|---|---|---|---|---|"]
    for name in FAMILIES:
        chat = made(name, history="keep")
        ends = ", ".join(
            f"`{t}`".replace("|", "\\|") for t in chat.tokenizer.convert_ids_to_tokens(sorted(chat.end_ids))
        )
        cells = [words[verdict(name, history=h)] for h in ("refuse", "keep", "strip")]
        rows.append(f"| {' | '.join([name, *cells])} | {ends} |")
    return "\n".join(rows)


def test_the_table_of_the_page_is_true() -> None:
    assert table() in ENGINES_PAGE.read_text(encoding="utf-8"), table()
