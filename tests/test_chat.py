"""Chat templates: what is sampled stays as it was sampled, and what stands between attempts is the template's own."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import processors

from selfcorrect.engines.chat import MANY, ChatFormat, Rendering
from selfcorrect.errors import ModelError
from tokenizers_in_process import CHATML, QWEN3, byte_level, chatml, gemma, llama2, llama3, markdown

USER = [{"role": "user", "content": "What is 2 + 2?"}]
SYSTEM = [{"role": "system", "content": "Be brief."}, *USER]
FIX = "There might be an error. Try again."
BUILDERS = [chatml, llama3, gemma, llama2, markdown]


def encode(tokenizer: Any, text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def shown(tokenizer: Any, ids: tuple[int, ...]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def test_golden_chatml() -> None:
    tokenizer = chatml()
    chat = ChatFormat(tokenizer)
    prompt = "<|im_start|>user\nWhat is 2 + 2?<|im_end|>\n<|im_start|>assistant\n"
    bridge = f"<|im_end|>\n<|im_start|>user\n{FIX}<|im_end|>\n<|im_start|>assistant\n"
    assert shown(tokenizer, chat.prompt_ids(USER)) == prompt
    assert shown(tokenizer, chat.bridge_ids(USER, FIX, ended=False)) == bridge
    assert shown(tokenizer, chat.bridge_ids(USER, FIX, ended=True)) == bridge.removeprefix("<|im_end|>")
    end, pad = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    assert (chat.turn_end_id, chat.end_ids, chat.pad_id) == (end, {end}, pad)


def test_the_cache_of_bridges_may_be_cleared_by_another_thread() -> None:
    """`selfcorrect serve` opens conversations in one thread and extends others in another."""

    class ClearedMeanwhile(dict[Any, str]):
        def __contains__(self, key: object) -> bool:
            found = super().__contains__(key)
            self.clear()
            return found

    chat = ChatFormat(chatml())
    expected = chat.bridge_ids(USER, FIX, ended=False)
    chat._bridges = ClearedMeanwhile(chat._bridges)
    assert chat.bridge_ids(USER, FIX, ended=False) == expected

    chat._bridges = {(str(i), ""): "" for i in range(MANY + 1)}  # both threads have added one at the same time
    assert chat.bridge_ids(USER, FIX, ended=False) == expected
    assert len(chat._bridges) == 1


def test_golden_llama3_ends_answers_on_both_tokens_but_writes_its_own() -> None:
    tokenizer = llama3()
    chat = ChatFormat(tokenizer)
    end, eos = tokenizer.convert_tokens_to_ids(["<|eot_id|>", "<|end_of_text|>"])
    assert chat.end_ids == {end, eos}
    assert chat.turn_end_id == end
    assert chat.pad_id in chat.end_ids, "no pad token: an end token stands in"
    # An answer that stopped on eos has not closed its turn: the bridge still writes the template's end of turn.
    assert chat.ended((5, end))
    assert not chat.ended((5, eos))
    assert not chat.ended(())
    assert shown(tokenizer, chat.bridge_ids(USER, FIX, ended=chat.ended((5, eos)))).startswith(
        "<|eot_id|><|start_header"
    )


@pytest.mark.parametrize("build", BUILDERS)
def test_three_attempts_read_as_the_template_writes_them(build: Any) -> None:
    """Prompt + answer + bridge + answer + bridge = the ids of the whole rendered conversation."""
    tokenizer = build()
    chat = ChatFormat(tokenizer)
    answers = ["It is 5.", "It is 4."]
    turns, ids = list(USER), chat.prompt_ids(USER)
    for answer in answers:
        ids += encode(tokenizer, answer)
        ids += chat.bridge_ids(turns, FIX, ended=False)
        turns += [{"role": "assistant", "content": answer}, {"role": "user", "content": FIX}]
    rendered = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert shown(tokenizer, ids).split() == shown(tokenizer, encode(tokenizer, rendered)).split()
    if build is not llama2:  # whose answers stand between spaces, which a model samples or not
        assert ids == encode(tokenizer, rendered)


@pytest.mark.parametrize("build", BUILDERS)
def test_ended_answers_give_the_same_conversation(build: Any) -> None:
    chat = ChatFormat(build())
    whole = chat.bridge_ids(USER, FIX, ended=False)
    rest = chat.bridge_ids(USER, FIX, ended=True)
    if chat.turn_end_id is None:
        assert rest == whole
    else:
        cut = len(whole) - len(rest)
        assert whole[cut:] == rest
        assert whole[cut - 1] == chat.turn_end_id
        assert chat.turn_end_id not in whole[: cut - 1]


@given(answer=st.lists(st.integers(0, 255), max_size=30))
def test_sampled_ids_are_never_encoded_again(answer: list[int]) -> None:
    """Ids that no text encodes to (broken UTF-8 here) go into attempt 2's prompt as they are."""
    chat = CHATML_FORMAT
    prompt = chat.prompt_ids(USER)
    second = (*prompt, *answer, *chat.bridge_ids(USER, FIX, ended=False))
    assert second[len(prompt) : len(prompt) + len(answer)] == tuple(answer)
    assert isinstance(chat.text(answer), str)


CHATML_FORMAT = ChatFormat(chatml())


def test_no_second_bos() -> None:
    tokenizer = llama3()
    bos = tokenizer.convert_tokens_to_ids("<|begin|>")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin|> $A", special_tokens=[("<|begin|>", bos)]
    )
    assert tokenizer("x")["input_ids"][0] == bos, "the tokenizer would add one by itself"
    chat = ChatFormat(tokenizer)
    assert chat.prompt_ids(USER).count(bos) == 1
    assert bos not in chat.bridge_ids(USER, FIX, ended=False)


def test_bos_that_the_template_writes_at_each_turn_stays() -> None:
    tokenizer = llama2()
    bos = tokenizer.convert_tokens_to_ids("<s>")
    assert ChatFormat(tokenizer).bridge_ids(USER, FIX, ended=False).count(bos) == 1


def test_an_end_token_written_after_the_last_turn_only_is_no_end_of_turn() -> None:
    tokenizer = markdown()
    tokenizer.chat_template += "{% if not add_generation_prompt %}{{ eos_token }}{% endif %}"
    chat = ChatFormat(tokenizer)
    assert chat.turn_end_id is None
    assert chat.end_ids == {tokenizer.eos_token_id}
    assert not chat.ended((tokenizer.eos_token_id,))


def turns_of(user: str, assistant: str, start: str = "") -> str:
    """A template of these two turns, as jinja expressions of ``m.content``; ``start`` opens an answer."""
    return (
        "{% for m in messages %}{% if m.role == 'user' %}{{ " + user + " }}{% else %}{{ " + assistant + " }}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}{{ '" + start + "' }}{% endif %}"
    )


LATER_ONLY = "('<eot>' if not loop.first else '') + '<user>' + m.content"
ENDINGS = {
    "Command R": (turns_of("'<user>' + m.content + eos_token", "'<bot>' + m.content + eos_token", "<bot>"), (), "</s>"),
    "Nemotron Mini": (turns_of("'<x>User\\n' + m.content", "'<x>Bot\\n' + m.content", "<x>Bot\\n"), ("<x>",), "<x>"),
    "Baichuan": (turns_of("'<user>' + m.content", "'<bot>' + m.content", "<bot>"), (), "<user>"),
    "GLM-4 with the ids of its files": (
        turns_of("'<user>\\n' + m.content", "'<bot>\\n' + m.content", "<bot>\\n"),
        ("<user>", "<x>"),
        "<user>",
    ),
    "OLMo 2": (
        turns_of("'<user>' + m.content", "'<bot>' + m.content + eos_token + ('' if loop.last else '\\n')", "<bot>"),
        (),
        "</s>",
    ),
    "an end before the next turn": (turns_of(LATER_ONLY, "'<bot>' + m.content", "<bot>"), (), "<eot>"),
    "the same, and EOS after the last turn": (
        turns_of(LATER_ONLY, "'<bot>' + m.content + ('' if add_generation_prompt else eos_token)", "<bot>"),
        (),
        "<eot>",
    ),
    "white space around the end": (turns_of(LATER_ONLY.replace("<eot>", "\\n</s>\\n"), "m.content"), (), "\n</s>"),
    "an end and EOS": (
        turns_of("'<user>' + m.content + '<eot>'", "'<bot>' + m.content + '<eot>' + eos_token", "<bot>"),
        ("<eot>",),
        "<eot>",
    ),
    "EOS that starts turns too": (
        turns_of("eos_token + m.content", "'<bot>' + m.content + eos_token", "<bot>"),
        (),
        "</s>",
    ),
}
"""Template, end ids of the model's files, and what the model writes at the end of an answer."""


@pytest.mark.parametrize("name", ENDINGS)
def test_an_answer_stops_and_attempt_2_reads_the_conversation_of_the_template(name: str) -> None:
    template, ends, writes = ENDINGS[name]
    tokenizer = byte_level(template, ["</s>", "<user>", "<bot>", "<eot>", "<x>"], eos_token="</s>")
    chat = ChatFormat(tokenizer, tokenizer.convert_tokens_to_ids(list(ends)))
    answer = encode(tokenizer, "It is 4." + writes)
    assert [i in chat.end_ids for i in answer] == [False] * (len(answer) - 1) + [True]
    second = chat.extend(chat.begin(USER), answer, FIX)
    turns = [*USER, {"role": "assistant", "content": "It is 4."}, {"role": "user", "content": FIX}]
    assert shown(tokenizer, second.ids) == tokenizer.apply_chat_template(
        turns, tokenize=False, add_generation_prompt=True
    )


def test_pad_may_equal_eos() -> None:
    chat = ChatFormat(chatml(pad_token="<|im_end|>"))
    assert chat.pad_id in chat.end_ids
    end = chat.pad_id
    assert chat.text((*encode(chat.tokenizer, "a"), end)) == "a"


def test_text_leaves_out_the_end_token_and_keeps_white_space() -> None:
    chat = ChatFormat(chatml())
    chat.tokenizer.clean_up_tokenization_spaces = True  # as many saved tokenizers ask for
    chat.tokenizer.clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output = True
    ids = encode(chat.tokenizer, " 4 .\n")
    assert chat.text(ids) == " 4 .\n", "no clean-up of spaces before punctuation"
    assert chat.text((*ids, *chat.end_ids)) == " 4 .\n"
    assert chat.text(()) == ""


def test_text_drops_an_end_token_that_is_not_marked_special() -> None:
    tokenizer = byte_level(CHATML, ["</s>", "<|im_start|>"], eos_token="</s>")
    tokenizer.add_tokens(["<|im_end|>"])
    chat = ChatFormat(tokenizer)
    assert chat.turn_end_id == tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert chat.text((*encode(tokenizer, "4"), chat.turn_end_id)) == "4"


def test_template_that_strips_think_blocks_is_refused() -> None:
    with pytest.raises(ModelError, match=r"think block.*attempt 2 would not see attempt 1.*chat_template.jinja"):
        ChatFormat(chatml(QWEN3))


def test_template_that_trims_outer_white_space_is_accepted() -> None:
    trimming = ChatFormat(chatml(CHATML.replace("m['content']", "m['content'] | trim")))
    assert trimming.end_ids == ChatFormat(chatml(CHATML)).end_ids


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("m['content']", "m['content'].replace('\n', ' ')", "line breaks"),
        ("m['content']", "(m['content'] if m['role'] == 'user' else '...')", "drops an earlier answer"),
        ("m['content']", "(m['content'] if loop.first or m['role'] != 'user' else '')", "drops .* the instruction"),
        ("assistant\n' }}", "assistant\n<think>\n' }}", "differently from the prompt"),
        ("+ '<|im_end|>'", "+ ('...' if '\n' in m['content'] else '') + '<|im_end|>'", "differently from the prompt"),
        ("{% for m in messages %}", "{% for m in messages[-3:] %}", "rewrites the first turns"),
        ("{% for m", "{{ raise_exception('one turn only') if messages | length > 1 }}{% for m", "one turn only"),
    ],
)
def test_templates_that_cannot_carry_attempts_are_refused(old: str, new: str, reason: str) -> None:
    with pytest.raises(ModelError, match=reason):
        ChatFormat(chatml(CHATML.replace(old, new)))


def test_a_template_that_keeps_the_thinking_of_the_last_answer_only_is_refused() -> None:
    last = QWEN3.replace("m['role'] == 'user' %}{% set ns", "m['role'] == 'assistant' %}{% set ns")
    assert last != QWEN3
    with pytest.raises(ModelError, match=r"rewrites the first turns .* third attempt.*model\.history=strip"):
        ChatFormat(chatml(last))


def test_tokenizer_that_loses_template_text_is_refused() -> None:
    tokenizer = llama2()
    tokenizer.chat_template = tokenizer.chat_template.replace("[INST] ", "[ÎNST] ")
    with pytest.raises(ModelError, match=r"does not give back"):
        ChatFormat(tokenizer)


@pytest.mark.parametrize("template", [None, "", {}])
def test_no_chat_template(template: Any) -> None:
    tokenizer = chatml()
    tokenizer.chat_template = template
    with pytest.raises(ModelError, match=r"has no chat template.*instruct model"):
        ChatFormat(tokenizer)


def test_named_chat_templates_need_a_default() -> None:
    tokenizer = chatml()
    tokenizer.chat_template = {"tool_use": CHATML, "chat": CHATML}
    with pytest.raises(ModelError, match=r"named chat templates \(chat, tool_use\).*save the wanted one as chat_templ"):
        ChatFormat(tokenizer)
    tokenizer.chat_template["default"] = CHATML
    assert ChatFormat(tokenizer).prompt_ids(USER) == CHATML_FORMAT.prompt_ids(USER)


@pytest.mark.parametrize(
    ("start", "words"),
    [
        ("{% for", r"does not compile \(TemplateSyntaxError: .*, line 1\)"),
        ("{{ messages | nofilter }}", r"does not compile \(TemplateAssertionError: No filter named 'nofilter'"),
        ("{{ 1 / 0 }}", r"fails on a conversation of user \(ZeroDivisionError: division by zero\)"),
        ("{{ messages + 'x' }}", r"fails on a conversation of user \(TypeError: "),
        ("{{ messages[9].content }}", r"fails on a conversation of user \(UndefinedError: "),
    ],
)
def test_a_template_that_fails_is_told_in_its_own_words(start: str, words: str) -> None:
    with pytest.raises(ModelError, match=words + r".*chat_template.jinja again or correct it"):
        ChatFormat(chatml("{{ x }}" + start + CHATML), rendering=Rendering(template_kwargs={"x": 1}))


def test_no_way_to_end() -> None:
    tokenizer = markdown()
    tokenizer.eos_token = None
    with pytest.raises(ModelError, match=r"no answer could ever end"):
        ChatFormat(tokenizer)


def test_system_message_refused_by_the_template() -> None:
    chat = ChatFormat(gemma())
    chat.prompt_ids(USER)
    with pytest.raises(ModelError, match=r"no system role.*no system message"):
        chat.prompt_ids(SYSTEM)


def test_system_message_dropped_by_the_template() -> None:
    silent = CHATML.replace("{% for m in messages %}", "{% for m in messages if m['role'] != 'system' %}")
    chat = ChatFormat(chatml(silent))
    with pytest.raises(ModelError, match=r"leaves out the text of the system message"):
        chat.prompt_ids(SYSTEM)


LAST = "{% for m in messages if m.role != 'system' %}{% set s = messages[0].content + '\n\n' if loop.last and messages[0].role == 'system' else '' %}"
FIRST_ONLY = "{% for m in messages if m.role != 'system' or messages | length < 3 %}{% set s = '' %}"


@pytest.mark.parametrize("loop", [LAST, FIRST_ONLY])
def test_a_system_message_that_moves_with_the_conversation_is_refused(loop: str) -> None:
    """Mistral's templates write it into the last user turn."""
    chat = ChatFormat(
        chatml(
            loop
            + "{{ '<|im_start|>' + m.role + '\n' + s + m.content + '<|im_end|>\n' }}{% endfor %}"
            + "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
        )
    )
    chat.extend(chat.begin(USER), chat.answer_ids("4"), FIX)
    prompt = chat.begin(SYSTEM)
    with pytest.raises(ModelError, match=r"twice or not at all.*user message"):
        chat.extend(prompt, chat.answer_ids("4"), FIX)
    with pytest.raises(ModelError, match="twice or not at all"):
        chat.frame(SYSTEM, [FIX])


def test_the_date_in_a_template_stands_still() -> None:
    llama = "{% set today = strftime_now('%d %b %Y') if strftime_now is defined else 'no clock' %}{{ today + '\n' }}"
    dated = chatml(llama + CHATML)
    assert shown(dated, ChatFormat(dated).prompt_ids(USER)).startswith("26 Jul 2024\n<|im_start|>user")


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ("%A %a %B %b %d %m %Y %y", "Friday Fri July Jul 26 07 2024 24"),
        ("%-d %-m %e %j %-H", "26 7 26 208 0"),
        ("%F %H:%M:%S %I %p %T", "2024-07-26 00:00:00 12 AM 00:00:00"),
    ],
)
def test_the_date_stands_still_in_every_form(form: str, text: str) -> None:
    dated = chatml(f"{{{{ strftime_now('{form}') }}}}|" + CHATML)
    assert shown(dated, ChatFormat(dated).prompt_ids(USER)).startswith(f"{text}|<|im_start|>user")
