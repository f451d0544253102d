"""From conversations to token ids and back, through the model's own chat template.

Attempt 2's prompt = attempt 1's prompt ids + attempt 1's sampled ids + the ids of a *bridge*: end of turn, the
correction instruction as a user turn, start of the next assistant turn. Sampled ids are never decoded and encoded again,
so the log-probs always belong to the tokens that the model saw and produced.

Two settings depart from this on purpose, and show attempt 2 a newly rendered conversation: ``model.history=strip`` and
``task.shown_as``. Attempt 1 is then a separate sequence, so the log-probs still belong to what was sampled.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from selfcorrect.config.sections import DECIDED_KWARGS
from selfcorrect.engines.thinking import USUAL, Markers, Parts, markers_of
from selfcorrect.errors import ConfigError, ModelError

History = Literal["refuse", "keep", "strip"]
ShownAs = Literal["assistant", "user", "document"]

Messages = Sequence[Mapping[str, object]]
"""``role`` and ``content`` of each turn, as ``selfcorrect.tasks.base.Message``."""

SENTINEL = "Sentinel answer"
MANY = 1024
"""Number of bridges and prompts that are cached."""
PROBE: Messages = ({"role": "user", "content": "Probe question"},)
LATER = "Later instruction"
SLOT = "Sentinel answer 5e1f"
"""Holds an answer's place while a conversation is rendered."""

_DAY = datetime(2024, 7, 26)  # no time zone: it is the same everywhere
_PINNED_DATE = {f"%{code}": _DAY.strftime(f"%{code}") for code in "aAbBcdDeFhHIjmMprRSTuUVwWxXyY"}
_PINNED_DATE |= {f"%-{code}": _PINNED_DATE[f"%{code}"].lstrip("0") or "0" for code in "dHIjmMSUVWy"}
"""Some templates print today's date, so prompts would change overnight and a resumed run would differ from an
uninterrupted one. So templates get a fixed date, the fallback of Llama 3.1's template."""


_POLICIES = (
    "say what attempt 2 shall see: model.history=keep shows it the sampled tokens, thinking included; model.history=strip "
    "shows it what the template shows. Or take an instruct model whose template keeps earlier answers, or save "
    "the model's directory with a chat_template.jinja that writes message.content unchanged"
)


def next_messages(messages: Messages, answer: str, request: str, shown_as: ShownAs = "assistant") -> Messages:
    """The conversation in which an answer is to be corrected.

    Args:
        messages: the conversation that was answered; it ends in a user turn.
        answer: without its thinking.
        request: the correction instruction.
        shown_as: who shows the answer. Unless it is the assistant, the last user turn quotes it.
    """
    if shown_as == "assistant":
        return [*messages, {"role": "assistant", "content": answer}, {"role": "user", "content": request}]
    *before, last = messages
    quote = f"I have this answer:\n\n{answer}" if shown_as == "user" else f"<document>\n{answer}\n</document>"
    return [*before, {**last, "content": f"{last['content']}\n\n{quote}\n\n{request}"}]


def require_chat_template(tokenizer: Any, name: str = "") -> None:
    """Refuse a tokenizer without a chat template.

    Raises:
        ModelError: there is no template, so it is unknown how this model marks turns; or several, and none is the default.
    """
    found, who = tokenizer.chat_template, f"the tokenizer of model {name or tokenizer.name_or_path or '(unnamed)'!r}"
    if not found:
        raise ModelError(
            f"{who} has no chat template, so it is not known how the model marks turns (base models have none); take an "
            "instruct model, or add a chat_template.jinja to its directory"
        )
    if isinstance(found, dict) and "default" not in found:
        raise ModelError(
            f"{who} has named chat templates ({', '.join(sorted(found))}) and none is the default, so it is not known how the "
            "model marks turns; save the wanted one as chat_template.jinja in the model's directory"
        )


@dataclass(frozen=True, slots=True)
class Rendering:
    """How a model's conversations are written: the settings ``model.*`` and ``task.shown_as`` of that name."""

    history: History = "refuse"
    template_kwargs: Mapping[str, Any] | None = None
    think_markers: tuple[str, str] | None = None
    shown_as: ShownAs = "assistant"


@dataclass(frozen=True, slots=True)
class Prompt:
    """A conversation up to where the next answer starts."""

    ids: tuple[int, ...]
    first: Messages
    """The messages that attempt 1 answers."""
    turns: tuple[tuple[str, tuple[int, ...], str], ...] = ()
    """Every answer since (without its thinking, as text and as sampled ids) with the request that followed it."""


class ChatFormat:
    """How one model writes conversations.

    The template may trim the outer white space of an answer: attempts enter later prompts as sampled ids, verbatim, so
    no trimming happens here. A template that drops or rewrites an earlier answer (Qwen3 removes think blocks) is refused
    unless ``model.history`` says what attempt 2 is to see.

    Everything that the template writes is kept, even a BOS at the start of every turn (SmolLM2's BOS *is* its start of
    turn). The tokenizer never adds a second BOS.

    Args:
        tokenizer: with a chat template.
        end_ids: the end ids of the model's generation config.
        rendering: settings.

    Raises:
        ModelError: the template cannot carry a conversation with several attempts, see ``check``.
        ConfigError: a setting of ``rendering`` would be ignored.
    """

    tokenizer: Any
    pad_id: int
    """Only pads batches. It may equal an end id, so masks must come from lengths, never from this id."""
    turn_end_id: int | None
    """The token that ends an assistant's answer in a conversation; None for a template that marks turns by text.

    In some families (GLM-4) it is the next role's token, which the template writes only when another turn follows.
    """
    end_ids: frozenset[int]
    """A sampled answer ends with one of these: the tokenizer's EOS, ``turn_end_id``, and those of the generation config.

    Nothing else of a generation config is read: no default of the model may change how it is sampled.
    """
    markers: Markers
    """Around the model's thinking."""

    def __init__(self, tokenizer: Any, end_ids: Collection[int] = (), rendering: Rendering | None = None) -> None:
        self.tokenizer = tokenizer
        self.rendering = rendering or Rendering()
        # The samples of one problem ask for the same bridge and the same prompt one after the other.
        self._bridges: dict[tuple[str, str], str] = {}
        self._encode_bridge = lru_cache(MANY)(self._encode)
        self._opens_thinking = lru_cache(MANY)(self._ends_in_thinking)
        require_chat_template(tokenizer)
        self._template = tokenizer.get_chat_template()
        self._kwargs = dict(self.rendering.template_kwargs or {})
        self._refuse_unread()
        own = self.rendering.think_markers
        self.markers = Markers(*own) if own is not None else markers_of(self._template) or USUAL
        if "strftime_now" in self._template:
            # A macro, because transformers passes no callables to templates. The empty expression keeps jinja's
            # trim_blocks from removing a line break at the start of the template.
            fixed = "".join(f" | replace({code!r}, {value!r})" for code, value in _PINNED_DATE.items())
            macro = "{% macro strftime_now(format) %}{{ format" + fixed + " }}{% endmacro %}{{ '' }}"
            self._template = macro + self._template
        header = self._render(PROBE, generate=True).rpartition(str(PROBE[0]["content"]))[2]
        self._begun = self.markers.begun_in(header)
        known = frozenset(i for i in (tokenizer.eos_token_id, *end_ids) if i is not None)
        self.turn_end_id, self._closing_id, tail = self._find_turn_end(known)
        self._closers = frozenset(
            i for i in (self.turn_end_id, tail if self._closing_id is not None else None) if i is not None
        )
        self.end_ids = known | self._closers
        if not self.end_ids:
            raise self._fault("has neither an EOS token nor an end-of-turn token, so no answer could ever end")
        pad = tokenizer.pad_token_id
        self.pad_id = pad if pad is not None else min(self.end_ids)
        self.check()

    def _refuse_unread(self) -> None:
        if not self._kwargs:
            return
        from jinja2 import TemplateSyntaxError

        from selfcorrect.engines.variables import variables_of

        try:
            read = variables_of(self._template)
        except TemplateSyntaxError:  # the first rendering says so
            return
        for name in sorted(self._kwargs.keys() - read):
            own = sorted(read - DECIDED_KWARGS - set(self.tokenizer.special_tokens_map))
            raise ConfigError(
                f"model.template_kwargs.{name} would be ignored: the chat template of "
                f"{self.tokenizer.name_or_path or 'this model'} does not read it (it reads {', '.join(own) or 'none that can be set'}); "
                "drop it, or correct the name"
            )

    def prompt_ids(self, messages: Messages) -> tuple[int, ...]:
        """Ids of a conversation that ends in a user turn, up to where the assistant's answer starts.

        Raises:
            ModelError: the template refuses the conversation, or leaves a message out of it.
        """
        text = self._render(messages, generate=True)
        for message in messages:
            content = str(message["content"])
            if self.rendering.history == "strip" and message["role"] == "assistant":
                content = self.markers.split(content).answer
            if content.strip() not in text:
                raise self._fault(
                    f"leaves out the text of the {message['role']} message",
                    way_out="put that text into the user message instead",
                )
        return self._encode(text)

    def begin(self, messages: Messages) -> Prompt:
        """The prompt of attempt 1.

        Raises:
            ModelError: as ``prompt_ids``.
        """
        return Prompt(self.prompt_ids(messages), messages)

    def extend(self, prompt: Prompt, answer: Sequence[int], request: str) -> Prompt:
        """The prompt of the next attempt. Only this method decides what attempt 2 sees of attempt 1.

        Args:
            prompt: the prompt that the answer was sampled from.
            answer: sampled ids, end token included.
            request: the correction instruction, shown by the user.
        """
        parts = self.parts(prompt.ids, answer)
        own = tuple(answer[self._tokens_before(answer, parts.start) :]) if parts.finished else ()
        own = own[:-1] if own and own[-1] in self.end_ids else own
        turns = (*prompt.turns, (parts.answer.strip(), own, request))
        if not self.renders_anew:
            bridge = self.bridge_ids(prompt.first, request, self.ended(answer))
            return Prompt((*prompt.ids, *answer, *bridge), prompt.first, turns)
        return Prompt(self._rendered_ids(prompt.first, turns), prompt.first, turns)

    @property
    def renders_anew(self) -> bool:
        """Whether a later attempt reads a newly rendered conversation instead of the sampled ids."""
        return self.rendering.history == "strip" or self.rendering.shown_as != "assistant"

    def frame(self, messages: Messages, requests: Sequence[str]) -> int:
        """Tokens of a conversation without its answers; an upper bound if it is rendered again.

        Args:
            messages: what attempt 1 answers.
            requests: one after each attempt but the last.

        Raises:
            ModelError: the template cannot take them.
        """
        start = len(self.prompt_ids(messages))
        if not self.renders_anew:
            return start + sum(len(self.bridge_ids(messages, r, False)) for r in requests)
        asked = tuple((SENTINEL, (), r) for r in requests)
        return max(start, len(self._encode(self._conversation(messages, asked)))) if requests else start

    def bridge_ids(self, messages: Messages, instruction: str, ended: bool) -> tuple[int, ...]:
        """Ids between the sampled ids of an answer and those of the next attempt.

        Args:
            messages: the conversation that the answer was sampled from; it ends in a user turn.
            instruction: the correction instruction, shown as the next user turn.
            ended: whether the sampled ids have closed their turn already (see ``ended``). It is not closed again then.

        Raises:
            ModelError: the template refuses or rewrites the conversation.
        """
        text = self._bridge_text(messages, instruction)
        ids = self._encode_bridge(text)
        closing = self._closing_id if self._closing_id is not None else self.turn_end_id
        if ended and closing is not None:
            opening = self._encode_bridge(
                text.partition(instruction.strip())[0]
            )  # a user's turn may end with the same token
            if closing in opening:
                return ids[ids.index(closing) + 1 :]
        return ids

    def answer_ids(self, text: str) -> tuple[int, ...]:
        """Ids of an answer that was not sampled, with the end token that the model would have written.

        If the prompt has opened the thinking, the ids close it first.
        """
        if self._begun:
            text = f"\n{self.markers.closing}\n\n{text}"
        return (*self._encode(text), self.turn_end_id if self.turn_end_id is not None else min(self.end_ids))

    def ended(self, token_ids: Sequence[int]) -> bool:
        """Whether an answer closed its own turn. An EOS that the template never writes does not close it."""
        return len(token_ids) > 0 and token_ids[-1] in self._closers

    def parts(self, prompt_ids: Sequence[int], token_ids: Sequence[int]) -> Parts:
        """Split an answer after its thinking. Special tokens are left out of both parts."""
        ids = list(token_ids)
        if ids and ids[-1] in self.end_ids:
            ids.pop()
        found = self.markers.split(self._decode(ids, skip_special_tokens=False), opened=self._opens(prompt_ids))
        if found.start == 0:
            return replace(found, answer=self._decode(ids, skip_special_tokens=True))
        cut = self._tokens_before(ids, found.start)
        if not found.finished or self._decode(ids[:cut], skip_special_tokens=False).endswith(self.markers.closing):
            answer = self._decode(ids[cut:], skip_special_tokens=True) if found.finished else ""
            return replace(found, answer=answer.lstrip("\n"))
        return found  # a token that holds the end of the marker and the start of the answer

    def thinking_tokens(self, token_ids: Sequence[int], parts: Parts) -> int:
        """How many of an answer's tokens are thinking, markers included."""
        return self._tokens_before(token_ids, parts.start)

    def _opens(self, prompt_ids: Sequence[int]) -> bool:
        """Whether a prompt ends inside a think block."""
        return self._opens_thinking(tuple(prompt_ids[-64 - len(self._encode_bridge(self._begun)) :]))

    def _ends_in_thinking(self, ids: tuple[int, ...]) -> bool:
        text = self._decode(ids, skip_special_tokens=False)
        begun = "".join(self._begun.split())
        return self.markers.open_in(text) or (begun != "" and "".join(text.split()).endswith(begun))

    def _tokens_before(self, ids: Sequence[int], characters: int) -> int:
        """The smallest number of tokens whose text has at least this many characters."""
        low, high = 0, len(ids)
        while low < high and characters:
            middle = (low + high) // 2
            if len(self._decode(list(ids[:middle]), skip_special_tokens=False)) < characters:
                low = middle + 1
            else:
                high = middle
        return low if characters else 0

    def save(self, path: Path) -> None:
        """Write the tokenizer; its chat template gets the values of ``model.template_kwargs`` as defaults."""
        if not self._kwargs:
            self.tokenizer.save_pretrained(path)
            return
        defaults = "".join(
            f"{{%- set {k} = {k} if {k} is defined else {v!r} -%}}\n" for k, v in sorted(self._kwargs.items())
        )
        changed = copy.deepcopy(self.tokenizer)
        changed.chat_template = defaults + self.tokenizer.get_chat_template()
        changed.save_pretrained(path)

    def text(self, token_ids: Sequence[int]) -> str:
        """The text of an answer, without its end token and without special tokens."""
        ids = list(token_ids)
        if ids and ids[-1] in self.end_ids:
            ids.pop()
        return self._decode(ids, skip_special_tokens=True)

    def check(self) -> None:
        """Send sentinel answers through the template. Called at construction, before any weights load.

        Raises:
            ModelError: the template drops or rewrites earlier answers and ``model.history`` does not say what to do; it
                does not keep the instruction; or it does not survive tokenisation.
            ConfigError: ``model.history`` would be ignored.
        """
        prompt, bridge = self._render(PROBE, generate=True), ""
        r = self.rendering
        if r.shown_as != "assistant":
            if r.history != "refuse":
                raise ConfigError(
                    f"model.history={r.history} would be ignored: task.shown_as={r.shown_as} quotes the answer without its "
                    "thinking; drop one of them"
                )
            whole = self._conversation(PROBE, ((SENTINEL, (), LATER),))
        else:
            bridge = self._bridge_text(PROBE, LATER)
            whole = prompt + SENTINEL + bridge
            if r.history == "strip":
                whole = self._conversation(PROBE, ((SENTINEL, (), LATER), (SENTINEL, (), LATER)))
            fault = self._changed_history(prompt, bridge)
            if r.history == "refuse" and fault is not None:
                raise fault
            if r.history == "strip" and fault is None:
                raise ConfigError(
                    f"model.history=strip would be ignored: the chat template of {self.tokenizer.name_or_path or 'this model'} "
                    "shows earlier answers whole; drop it"
                )
        # White space aside: some tokenizers put a space before each piece, some special tokens swallow the one after.
        decoded = self._decode(self._encode(whole), skip_special_tokens=False)
        if "".join(decoded.split()) != "".join(whole.split()):
            raise self._fault(
                "writes text that the tokenizer does not give back (unknown characters, or special tokens added by "
                "itself)",
                way_out="use the tokenizer that belongs to this chat template",
            )

    def _changed_history(self, prompt: str, bridge: str) -> ModelError | None:
        """How the template changes earlier answers, so that sampled ids cannot be kept; None if it shows them whole."""
        contents = {
            "plain text": SENTINEL,
            "outer white space": f" \n {SENTINEL}\n\n",
            "line breaks": f"first\n\n  {SENTINEL}\n- last",
            "a think block": f"<think>\nfirst idea\n</think>\n\n{SENTINEL}",
        }
        if self.markers != USUAL:
            contents["thinking"] = f"{self.markers.opening}\nfirst idea\n{self.markers.closing}\n\n{SENTINEL}"
        try:
            for kind, content in contents.items():
                self._check_kept(kind, content, prompt, bridge)
            for content in contents.values():
                longer = [*PROBE, {"role": "assistant", "content": content}, {"role": "user", "content": LATER}]
                third = [*longer, {"role": "assistant", "content": content}, {"role": "user", "content": LATER}]
                if not self._render(third, generate=True).startswith(self._render(longer, generate=True)):
                    return self._fault(
                        "rewrites the first turns of a conversation once a third attempt follows", _POLICIES
                    )
        except ModelError as fault:
            return fault
        return None

    def _check_kept(self, kind: str, content: str, prompt: str, bridge: str) -> None:
        turns = [*PROBE, {"role": "assistant", "content": content}, {"role": "user", "content": LATER}]
        before, kept, after = self._render(turns, generate=True).partition(content.strip())
        if not kept:
            raise self._fault(
                f"drops or rewrites an earlier answer that holds {kind}, so attempt 2 would not see attempt 1 as it "
                f"was sampled",
                way_out=_POLICIES,
            )
        surplus = before.removeprefix(prompt) if before.startswith(prompt) else before
        if surplus.strip() or after.strip() != bridge.strip():
            raise self._fault(
                f"writes a conversation with an earlier answer that holds {kind} differently from the prompt of that "
                f"answer",
                way_out=_POLICIES,
            )

    def _find_turn_end(self, known: frozenset[int]) -> tuple[int | None, int | None, int | None]:
        """How a turn of the assistant ends.

        Returns:
            The token that ends an answer before another turn; the token that the template writes in its place after a
            closed turn, where these differ (gpt-oss); and the first token after a final answer.
        """
        closed = self._render([*PROBE, {"role": "assistant", "content": SENTINEL}], generate=False)
        tail = self._first_marker(self._encode(closed.rpartition(SENTINEL)[2]))
        if self.rendering.shown_as != "assistant":
            return tail, None, tail
        between = self._first_marker(self._encode(self._bridge_text(PROBE, LATER)))
        if between is None or between == tail or between in known:
            return (between, None, tail) if between is not None else (None, None, None)
        if tail is None:
            # the turn is closed by whatever comes next; a BOS starts turns and ends none
            return (between if between != self.tokenizer.bos_token_id else None), None, None
        after_user = self._first_marker(
            self._encode(self._render(PROBE, generate=True).rpartition("Probe question")[2])
        )
        if between == after_user and tail in known:
            return None, between, tail
        if between not in self._encode(self._render(PROBE, generate=True)) and between != self.tokenizer.bos_token_id:
            # it starts no turn, so it ends one
            return between, between, tail
        return None, None, None

    def _first_marker(self, ids: Sequence[int]) -> int | None:
        added = self.tokenizer.added_tokens_decoder
        for i in ids:
            blank = not self._decode([i], skip_special_tokens=False).strip()
            if not blank:
                return i if i in added else None
        return None

    def _conversation(self, messages: Messages, turns: Sequence[tuple[str, tuple[int, ...], str]]) -> str:
        """A newly rendered conversation, with a slot in place of every answer."""
        for _, _, request in turns:
            messages = next_messages(messages, SLOT, request, self.rendering.shown_as)
        text = self._render(messages, generate=True)
        if text.count(SLOT) != len(turns) or any(request.strip() not in text for *_, request in turns):
            raise self._fault(
                "drops an earlier answer or the instruction after it, so there is no second attempt",
                way_out="take an instruct model whose template keeps the whole conversation",
            )
        return text

    def _rendered_ids(self, messages: Messages, turns: Sequence[tuple[str, tuple[int, ...], str]]) -> tuple[int, ...]:
        first, *pieces = self._conversation(messages, turns).split(SLOT)
        answers = [answer for answer, _, _ in turns]
        ids = self._encode(first + "".join(a + piece for a, piece in zip(answers, pieces, strict=True)))
        around = [self._encode(piece) for piece in (first, *pieces)]
        if len(ids) <= sum(map(len, around)) + sum(len(own) for _, own, _ in turns):
            return ids
        # Text of broken characters takes more tokens than were sampled, and an episode has no room for them.
        spliced = list(around[0])
        for (_, own, _), piece in zip(turns, around[1:], strict=True):
            spliced += [*own, *piece]
        return tuple(spliced)

    def _bridge_text(self, messages: Messages, instruction: str) -> str:
        key = (repr(messages), instruction)
        found = self._bridges.get(key)
        if found is None:  # a server asks in two threads: the other one may clear or fill the cache at any time
            found = self._render_bridge(messages, instruction)
            if len(self._bridges) >= MANY:
                self._bridges.clear()
            self._bridges[key] = found
        return found

    def _render_bridge(self, messages: Messages, instruction: str) -> str:
        turns = [*messages, {"role": "assistant", "content": SENTINEL}, {"role": "user", "content": instruction}]
        before, kept, bridge = self._render(turns, generate=True).rpartition(SENTINEL)
        system = any(m["role"] == "system" for m in messages)
        if system and not before.startswith(self._render(messages, generate=False).rstrip()):
            raise self._fault(
                "places the system message elsewhere once another turn follows, so attempt 2 would see it twice or not at all",
                way_out="put that text into the user message instead",
            )
        if not kept or instruction.strip() not in bridge:
            raise self._fault(
                "drops an earlier answer or the instruction after it, so there is no second attempt",
                way_out="take an instruct model whose template keeps the whole conversation",
            )
        return bridge

    def _render(self, messages: Messages, *, generate: bool) -> str:
        from jinja2 import TemplateError, TemplateSyntaxError

        try:
            return str(
                self.tokenizer.apply_chat_template(
                    [dict(m) for m in messages],
                    tokenize=False,
                    add_generation_prompt=generate,
                    chat_template=self._template,
                    **self._kwargs,
                )
            )
        except Exception as error:  # a template is a program: it may raise anything
            roles = ", ".join(str(m["role"]) for m in messages)
            if type(error) is TemplateError:  # by raise_exception
                raise self._fault(
                    f"refuses a conversation of {roles}: {error}",
                    way_out="give a conversation of the form it takes (for many models: no system message, user first)",
                ) from error
            said = f"{type(error).__name__}: {getattr(error, 'message', error)}"
            raise self._fault(
                f"does not compile ({said}, line {error.lineno})"
                if isinstance(error, TemplateSyntaxError)
                else f"fails on a conversation of {roles} ({said})",
                way_out="copy the model's chat_template.jinja again or correct it, or take another instruct model",
            ) from error

    def _encode(self, text: str) -> tuple[int, ...]:
        # The template has written every special token that belongs here; the tokenizer must not add its own BOS.
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        # Clean-up would rewrite " ." to ".", so that the verifier would read what was not sampled.
        return str(
            self.tokenizer.decode(
                list(ids), skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False
            )
        )

    def _fault(self, what: str, way_out: str = "take another instruct model") -> ModelError:
        return ModelError(f"the chat template of {self.tokenizer.name_or_path or 'this model'} {what}; {way_out}")
