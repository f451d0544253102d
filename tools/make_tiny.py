"""Makes a small base: an ordinary Hugging Face directory, from a recipe of ``selfcorrect.reproduce.bases``.

    python tools/make_tiny.py tiny OUT        (about 5 minutes on one idle core)

The recipes say what each base was taught. The shipped weights are reproduced bit for bit on the same kind of processor.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from selfcorrect.config import PRESET_MARKER
from selfcorrect.reproduce.bases import RECIPES, conversation, pretrain, render


def main() -> None:
    if len(sys.argv) != 3 or sys.argv[1] not in RECIPES:
        sys.exit(f"usage: python tools/make_tiny.py {{{','.join(RECIPES)}}} OUT")
    recipe, out = RECIPES[sys.argv[1]], Path(sys.argv[2])
    print(recipe)
    model, tokenizer = pretrain(recipe, say=lambda line: print(line, flush=True))
    sample = conversation([4, 7, 2], ("a", "b"))
    assert tokenizer.apply_chat_template(sample, tokenize=False) == render(sample), "render() is not the chat template"
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    (out / PRESET_MARKER).write_text("tiny\n", encoding="utf-8")  # runs from this directory have the preset of ``tiny``
    print(f"{model.num_parameters():,} parameters -> {out}; measure with: selfcorrect eval {out} task=arithmetic")


if __name__ == "__main__":
    torch.set_num_threads(1)  # sums of floats depend on the number of threads: one, so that anyone gets these weights
    main()
