"""From conversations to token ids and back, through the model's own chat template.

Attempt 2's prompt = attempt 1's prompt ids + attempt 1's sampled ids + the ids of a *bridge*: end of turn, the
correction instruction as a user turn, start of the next assistant turn. Sampled ids are never decoded and encoded again,
so the log-probs always belong to the tokens that the model saw and produced.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from selfcorrect.errors import ModelError

Messages = Sequence[Mapping[str, object]]
"""``role`` and ``content`` of each turn, as ``selfcorrect.tasks.base.Message``."""

SENTINEL = "Sentinel answer"
PROBE: Messages = ({"role": "user", "content": "Probe question"},)
LATER = "Later instruction"

_PINNED_DATE = {
    "%Y": "2024",
    "%y": "24",
    "%B": "July",
    "%b": "Jul",
    "%m": "07",
    "%d": "26",
    "%A": "Friday",
    "%a": "Fri",
}
"""Some templates print today's date, so prompts would change overnight and a resumed run would differ from an
uninterrupted one. The date that Llama 3.1's template falls back to stands in for it."""


def require_chat_template(tokenizer: Any, name: str = "") -> None:
    """Refuse a tokenizer without a chat template.

    Raises:
        ModelError: there is none, so it is unknown how this model marks turns.
    """
    if tokenizer.chat_template is None:
        raise ModelError(
            f"the tokenizer of model {name or tokenizer.name_or_path or '(unnamed)'!r} has no chat template, so it is "
            "not known how the model marks turns (base models have none); take an instruct model, or add a "
            "chat_template.jinja to its directory"
        )


class ChatFormat:
    """How one model writes conversations.

    The template may trim the outer white space of an answer: attempts enter later prompts as sampled ids, verbatim, so
    no trimming happens here. A template that drops or rewrites an earlier answer (Qwen3 removes think blocks) is refused:
    the model was trained on other histories than it would be given.

    Everything that the template writes is kept, even a BOS at the start of every turn (SmolLM2's BOS *is* its start of
    turn). The tokenizer never adds a second BOS.

    Raises:
        ModelError: the template cannot carry a conversation with several attempts, see ``check``.
    """

    tokenizer: Any
    pad_id: int
    """Only pads batches. It may equal an end id, so masks must come from lengths, never from this id."""
    turn_end_id: int | None
    """The token that the template writes after an assistant's answer; None for a template that marks turns by text."""
    end_ids: frozenset[int]
    """A sampled answer ends with one of these: the tokenizer's EOS and ``turn_end_id``.

    The lists in a model's generation_config are not read: they hold other ids (padding, tool calls) that the template
    never writes, and no default of the model may change how it is sampled.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._encoded: dict[str, tuple[int, ...]] = {}
        require_chat_template(tokenizer)
        self._template = tokenizer.get_chat_template()
        if "strftime_now" in self._template:
            # A macro, because transformers passes no callables to templates. The empty expression keeps jinja's
            # trim_blocks from removing a line break at the start of the template.
            fixed = "".join(f" | replace('{code}', '{value}')" for code, value in _PINNED_DATE.items())
            macro = "{% macro strftime_now(format) %}{{ format" + fixed + " }}{% endmacro %}{{ '' }}"
            self._template = macro + self._template
        self.turn_end_id = self._find_turn_end()
        eos = tokenizer.eos_token_id
        self.end_ids = frozenset(i for i in (eos, self.turn_end_id) if i is not None)
        if not self.end_ids:
            raise self._fault("has neither an EOS token nor an end-of-turn token, so no answer could ever end")
        pad = tokenizer.pad_token_id
        self.pad_id = pad if pad is not None else min(self.end_ids)
        self.check()

    def prompt_ids(self, messages: Messages) -> tuple[int, ...]:
        """Ids of a conversation that ends in a user turn, up to where the assistant's answer starts.

        Raises:
            ModelError: the template refuses the conversation, or leaves a message out of it.
        """
        text = self._render(messages, generate=True)
        for message in messages:
            if str(message["content"]).strip() not in text:
                raise self._fault(
                    f"leaves out the text of the {message['role']} message",
                    way_out="put that text into the user message instead",
                )
        return self._encode(text)

    def bridge_ids(self, messages: Messages, instruction: str, ended: bool) -> tuple[int, ...]:
        """Ids between the sampled ids of an answer and those of the next attempt.

        Args:
            messages: the conversation that the answer was sampled from; it ends in a user turn.
            instruction: the correction instruction, shown as the next user turn.
            ended: the sampled ids already end in ``turn_end_id`` (see ``ended``), which is then not repeated.

        Raises:
            ModelError: the template refuses or rewrites the conversation.
        """
        text = self._bridge_text(messages, instruction)
        if text not in self._encoded:
            self._encoded[text] = self._encode(text)
        ids = self._encoded[text]
        if ended and self.turn_end_id in ids:
            return ids[ids.index(self.turn_end_id) + 1 :]
        return ids

    def answer_ids(self, text: str) -> tuple[int, ...]:
        """Ids of an answer that was not sampled, with the end token that the model would have written."""
        return (*self._encode(text), self.turn_end_id if self.turn_end_id is not None else min(self.end_ids))

    def ended(self, token_ids: Sequence[int]) -> bool:
        """Whether an answer closed its own turn. An EOS other than the template's end of turn does not close it."""
        return self.turn_end_id is not None and len(token_ids) > 0 and token_ids[-1] == self.turn_end_id

    def text(self, token_ids: Sequence[int]) -> str:
        """The text of an answer, without its end token and without special tokens."""
        ids = list(token_ids)
        if ids and ids[-1] in self.end_ids:
            ids.pop()
        return self._decode(ids, skip_special_tokens=True)

    def check(self) -> None:
        """Send sentinel answers through the template. Called at construction, before any weights load.

        Raises:
            ModelError: the template drops or rewrites earlier answers, starts an answer with text that it does not keep
                in the history, or does not survive tokenisation.
        """
        prompt, bridge = self._render(PROBE, generate=True), self._bridge_text(PROBE, LATER)
        contents = {
            "plain text": SENTINEL,
            "outer white space": f" \n {SENTINEL}\n\n",
            "line breaks": f"first\n\n  {SENTINEL}\n- last",
            "a think block": f"<think>\nfirst idea\n</think>\n\n{SENTINEL}",
        }
        for kind, content in contents.items():
            self._check_kept(kind, content, prompt, bridge)
        answer = {"role": "assistant", "content": "first answer"}
        longer = [*PROBE, answer, {"role": "user", "content": LATER}]
        third = [*longer, {"role": "assistant", "content": SENTINEL}, {"role": "user", "content": LATER}]
        if not self._render(third, generate=True).startswith(self._render(longer, generate=True)):
            raise self._fault("rewrites the first turns of a conversation once a third attempt follows")
        ids = [*self._encode(prompt), *self._encode(SENTINEL), *self._encode(bridge)]
        # White space aside: some tokenizers put a space before each piece, some special tokens swallow the one after.
        decoded, text = self._decode(ids, skip_special_tokens=False), prompt + SENTINEL + bridge
        if "".join(decoded.split()) != "".join(text.split()):
            raise self._fault(
                "writes text that the tokenizer does not give back (unknown characters, or special tokens added by "
                "itself)",
                way_out="use the tokenizer that belongs to this chat template",
            )

    def _check_kept(self, kind: str, content: str, prompt: str, bridge: str) -> None:
        turns = [*PROBE, {"role": "assistant", "content": content}, {"role": "user", "content": LATER}]
        before, kept, after = self._render(turns, generate=True).partition(content.strip())
        if not kept:
            raise self._fault(
                f"drops or rewrites an earlier answer that holds {kind}, so attempt 2 would not see attempt 1 as it "
                f"was sampled",
                way_out="take an instruct model whose template keeps earlier answers, or save the model's directory "
                "with a chat_template.jinja that writes message.content unchanged",
            )
        surplus = before.removeprefix(prompt) if before.startswith(prompt) else before
        if surplus.strip() or after.strip() != bridge.strip():
            raise self._fault(
                f"writes a conversation with an earlier answer that holds {kind} differently from the prompt of that "
                f"answer",
                way_out="take a model whose generation prompt is the start of every assistant turn",
            )

    def _find_turn_end(self) -> int | None:
        """The first marker after a final answer, if the template also writes it between an answer and the next turn."""
        closed = self._render([*PROBE, {"role": "assistant", "content": SENTINEL}], generate=False)
        tail = self._first_marker(self._encode(closed.rpartition(SENTINEL)[2]))
        between = self._first_marker(self._encode(self._bridge_text(PROBE, LATER)))
        return tail if tail == between else None

    def _first_marker(self, ids: Sequence[int]) -> int | None:
        added = self.tokenizer.added_tokens_decoder
        for i in ids:
            blank = not self._decode([i], skip_special_tokens=False).strip()
            if not blank:
                return i if i in added else None
        return None

    def _bridge_text(self, messages: Messages, instruction: str) -> str:
        turns = [*messages, {"role": "assistant", "content": SENTINEL}, {"role": "user", "content": instruction}]
        _, kept, bridge = self._render(turns, generate=True).rpartition(SENTINEL)
        if not kept or instruction.strip() not in bridge:
            raise self._fault(
                "drops an earlier answer or the instruction after it, so there is no second attempt",
                way_out="take an instruct model whose template keeps the whole conversation",
            )
        return bridge

    def _render(self, messages: Messages, *, generate: bool) -> str:
        from jinja2 import TemplateError

        try:
            return str(
                self.tokenizer.apply_chat_template(
                    [dict(m) for m in messages],
                    tokenize=False,
                    add_generation_prompt=generate,
                    chat_template=self._template,
                )
            )
        except (TemplateError, TypeError, ValueError) as error:
            roles = ", ".join(str(m["role"]) for m in messages)
            raise self._fault(
                f"refuses a conversation of {roles}: {error}",
                way_out="give a conversation of the form it takes (for many models: no system message, user first)",
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
