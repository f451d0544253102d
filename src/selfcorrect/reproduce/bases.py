"""Small base models with chosen habits: pretraining from a recipe. The embedded models and the map's bases come from here.

A base is taught in three phases, with loss on the assistant's turns only, on problems whose hash keeps them out of the
training and test splits:

- sums: one attempt at short problems (from 3 terms), answers mostly right;
- skills: two attempts or more. Answers to long problems are guesses followed by a sound check. Attempt 2 is the right solution
  with probability 0.5, else mostly a copy of attempt 1;
- habits: as skills, with the mistakes and the rare corrections that the base is to have.

So the base can use its check in principle, but rarely does. Recipes differ in how rarely, and in how much harm its
other changes do.
"""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from selfcorrect.episodes.verdict import REQUEST
from selfcorrect.tasks.arithmetic import INSTRUCTION, Habits, demonstrate, question, solution
from selfcorrect.tasks.procedural import split_of

BOS, EOS, PAD, USER, ASSISTANT = "<|bos|>", "<|end|>", "<|pad|>", "<|user|>", "<|assistant|>"
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
VERDICTS = {True: "Verdict: correct", False: "Verdict: wrong"}
"""By whether the model takes its answer for right."""
Digits = list[int]
Chat = list[dict[str, str]]


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights."""

    seed: int = 0
    longest: int = 6
    short: int = 4
    """Problems of up to this many terms count as short: the base can answer them at once."""
    short_share: float = 0.4
    """Share of short problems in the phases of two attempts."""
    attempts: int = 2
    """Attempts of a conversation in the phases after sums."""
    verdict_share: float = 0.0
    """Share of the conversations after sums in which the model judges attempt 1, and revises it only if it says "wrong"."""
    verdict_truth: tuple[float, float] = (0.75, 0.55)
    """How often such a verdict is true, in skills and in habits."""
    skills: Habits = field(default=Habits(slip_short=0.0, slip_long=0.9, fix_short=0.5, fix_long=0.5, redo=0.1))
    habits: Habits = field(default=Habits(slip_short=0.4, slip_long=0.9, fix_short=0.02, fix_long=0.005, redo=0.1))
    hidden: int = 64
    layers: int = 2
    heads: int = 4
    steps_sums: int = 900
    steps_skills: int = 1300
    steps_habits: int = 400
    batch: int = 128
    learning_rate: float = 4e-3

    @property
    def steps(self) -> int:
        return self.steps_sums + self.steps_skills + self.steps_habits


def rare(fix: float = 0.02, redo: float = 0.1, slip_edge: float = 0.8, seed: int = 1, short: int = 5) -> Recipe:
    """A base that makes mistakes on sums that it knows, changes answers for the worse, and rarely corrects one.

    Args:
        fix: probability that attempt 2 is the right solution.
        redo: probability that attempt 2 is a new try, which is mostly wrong. It sets how much harm changes do.
        slip_edge: probability of a mistake at attempt 1 on problems of ``short`` terms. It sets how far RL can improve
            attempt 1.
        seed: of the pretraining.
        short: the longest problems that the base can answer at once.
    """
    fumbles = Habits(slip_short=0.4, slip_long=0.9, fix_short=0.5, fix_long=0.5, redo=0.1, off_by_one=True)
    habits = Habits(
        slip_short=0.1,
        slip_long=0.9,
        fix_short=fix,
        fix_long=fix,
        redo=redo,
        slip_again=0.9,
        slip_edge=slip_edge,
        off_by_one=True,
    )
    return Recipe(seed=seed, short=short, short_share=0.6, skills=fumbles, habits=habits, steps_sums=1200)


EMBEDDED = {"tiny": Recipe(), "tiny-rare": rare()}
"""``tiny`` corrects a tenth of its problems at temperature 1, so exploration needs no help. ``tiny-rare`` corrects one answer
in a hundred."""

RECIPES = EMBEDDED | {
    "three-turns": replace(rare(0.03), attempts=3),
    "verdicts": replace(rare(), verdict_share=0.3),
}
"""The last two are not shipped. Runs with three attempts start from the first, and those that compare SCoRe with PAG and
ThinkTwice from the second."""


def draw(n: int, seed: int, terms: tuple[int, int]) -> list[Digits]:
    """Problems of the pretraining split, repeats allowed, uniform in the number of terms."""
    rng = random.Random(f"pretrain:{seed}")
    out: list[Digits] = []
    while len(out) < n:
        digits = [rng.randint(1, 9) for _ in range(rng.randint(*terms))]
        if split_of(question(digits)) == "pretrain":
            out.append(digits)
    return out


def make_tokenizer(*more: str) -> PreTrainedTokenizerFast:
    """Byte-level BPE with separate digits and no splitting at spaces: a frequent phrase is one token, and any text can
    be encoded."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        min_frequency=2,
        special_tokens=[PAD, BOS, EOS, USER, ASSISTANT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [t for d in draw(200, 0, (4, 8)) for t in (question(d), solution(d), INSTRUCTION, *more)]
    core.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        additional_special_tokens=[USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=256,
    )


def conversation(digits: Digits, answers: tuple[str, ...]) -> Chat:
    turns = [{"role": "user", "content": question(digits)}, {"role": "assistant", "content": answers[0]}]
    for text in answers[1:]:
        turns += [{"role": "user", "content": INSTRUCTION}, {"role": "assistant", "content": text}]
    return turns


def judged(digits: Digits, answers: tuple[str, ...], truth: float, rng: random.Random) -> Chat:
    """A conversation in which the model judges attempt 1 first; attempt 2 follows only a verdict of "wrong"."""
    is_right = answers[0] == solution(digits)
    says_right = is_right if rng.random() < truth else not is_right
    chat = conversation(digits, answers[:1])
    chat += [{"role": "user", "content": REQUEST}, {"role": "assistant", "content": VERDICTS[says_right]}]
    return chat if says_right else chat + conversation(digits, answers)[2:]


def render(chat: Chat) -> str:
    """The chat template in Python: rendering 300,000 chats with Jinja would take minutes."""
    return BOS + "".join(f"<|{m['role']}|>{m['content']}{EOS}" for m in chat)


def batches(recipe: Recipe) -> Iterator[list[Chat]]:
    """The batches of conversations of all three phases."""
    rng = random.Random(recipe.seed)
    phases = [
        (recipe.steps_sums, 1.0),
        (recipe.steps_skills, recipe.short_share),
        (recipe.steps_habits, recipe.short_share),
    ]
    for phase, (steps, share) in enumerate(phases):
        total = steps * recipe.batch
        shorts = round(total * share)
        seed = 10 * recipe.seed + phase
        problems = draw(shorts, seed, (3, recipe.short)) + draw(
            total - shorts, seed, (recipe.short + 1, recipe.longest)
        )
        rng.shuffle(problems)
        habits = recipe.habits if phase == 2 else recipe.skills
        attempts = 1 if phase == 0 else recipe.attempts
        for i in range(0, total, recipe.batch):
            chats = []
            for d in problems[i : i + recipe.batch]:
                answers = demonstrate(d, habits, recipe.short, rng, attempts=recipe.attempts)[:attempts]
                if phase and recipe.verdict_share and rng.random() < recipe.verdict_share:
                    chats.append(judged(d, answers, recipe.verdict_truth[phase - 1], rng))
                else:
                    chats.append(conversation(d, answers))
            yield chats


def encode(chats: list[Chat], tokenizer: PreTrainedTokenizerFast) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids, right-padded, and labels: -100 outside the assistant's turns; both of shape [B, T]."""
    rows = [e.ids for e in tokenizer.backend_tokenizer.encode_batch([render(c) for c in chats])]
    width = max(map(len, rows))
    ids = torch.tensor([r + [tokenizer.pad_token_id] * (width - len(r)) for r in rows])
    user, assistant = tokenizer.convert_tokens_to_ids([USER, ASSISTANT])
    in_answer = (ids == assistant).cumsum(1) == (ids == user).cumsum(1)
    spoken = in_answer & (ids != assistant) & (ids != tokenizer.pad_token_id) & ((ids == user).cumsum(1) > 0)
    return ids, ids.masked_fill(~spoken, -100)


def pretrain(
    recipe: Recipe, skills: Path | None = None, say: Callable[[str], object] = lambda _line: None
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """Next-token training on fresh documents; AdamW with a short warm-up and a linear decay over the second half.

    Args:
        recipe: of the base.
        skills: file of weights and optimiser state after the second phase. It is used if it exists, else written.
            Recipes that differ only in their habits then share two thirds of the work.
        say: receives the loss every 250 steps.
    """
    tokenizer = make_tokenizer(*((REQUEST, *VERDICTS.values()) if recipe.verdict_share else ()))
    torch.manual_seed(recipe.seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden,
        intermediate_size=3 * recipe.hidden,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        initializer_range=0.05,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    taught, first = recipe.steps_sums + recipe.steps_skills, 0
    if skills is not None and skills.exists():
        state: dict[str, Any] = torch.load(skills, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first = taught
    for step, chats in enumerate(batches(recipe)):
        if step == taught and skills is not None and first == 0:
            part = skills.with_suffix(f".{os.getpid()}.part")  # another process may make the same skills
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, part)
            part.replace(skills)
        if step < first:
            continue
        scale = min(1.0, (step + 1) / 100, 2 * (1 - step / recipe.steps))
        optimizer.param_groups[0]["lr"] = recipe.learning_rate * scale
        ids, labels = encode(chats, tokenizer)
        hidden = model.model(ids[:, :-1]).last_hidden_state
        keep = labels[:, 1:] != -100
        loss = torch.nn.functional.cross_entropy(model.lm_head(hidden[keep]), labels[:, 1:][keep])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 250 == 249:
            say(f"step {step + 1}  loss {loss.item():.4f}")
    model.generation_config = GenerationConfig.from_model_config(
        model.config
    )  # end and padding ids, no sampling defaults
    return model.eval(), tokenizer


def skills_name(recipe: Recipe) -> str:
    """Name of the file that recipes share if they differ only in their habits."""
    taught = replace(recipe, habits=recipe.skills)
    return f"skills-{hashlib.sha256(repr(taught).encode()).hexdigest()[:10]}.pt"
