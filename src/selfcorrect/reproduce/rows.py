"""What is reproduced, as data: rows, the targets that show them, and the paper's claims about them.

A row is a method with settings. A target is a list of rows. A claim is an inequality between two rows.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Literal

from selfcorrect.measuring.labels import METHODS


@dataclass(frozen=True, slots=True)
class TableRow:
    """One line of a table."""

    key: str
    """Name of the row in file names, claims and paper.toml."""
    label: str
    settings: tuple[str, ...] = ()
    """``key=value``. Rows differ only in these settings."""
    kind: Literal["trained", "prompted", "base"] = "trained"
    """prompted: a way to play the base, measured without training. base: measured by every run before its first
    step."""
    ours: bool = False
    """The paper has no such row."""
    budget_note: str = ""
    """Why the row may sample fewer responses than the others; empty if it must sample as many."""


_ROWS = (
    TableRow("base", "base", kind="base"),
    TableRow("score", METHODS["score"], ("method=score",)),
    TableRow("multi_turn", METHODS["multi_turn"], ("method=multi_turn",)),
    TableRow("single_turn", METHODS["single_turn"], ("method=single_turn",)),
    TableRow("no_stage1", "without Stage I", ("method=score", "method.stage1_share=0")),
    TableRow("no_shaping", "without shaping", ("method=score", "method.alpha=0")),
    TableRow("self_refine", METHODS["self_refine"], ("method=self_refine",), kind="prompted"),
    TableRow("star_d", f"{METHODS['star']}, D", ("method=star", "method.dataset=D")),
    TableRow("star_d_plus", f"{METHODS['star']}, D+", ("method=star", "method.dataset=D+")),
    TableRow("pair_sft_d", f"{METHODS['pair_sft']}, D", ("method=pair_sft", "method.dataset=D")),
    TableRow("pair_sft_d_plus", f"{METHODS['pair_sft']}, D+", ("method=pair_sft", "method.dataset=D+")),
    TableRow("stage2_star", f"{METHODS['star']} in Stage II", ("method=score", "method.stage2=star")),
    TableRow(
        "offline",
        "offline first attempts",
        ("method=score", "method.offline_share=1"),
        budget_note="first attempts of the base are sampled once per problem and used again when it comes again",
    ),
    TableRow("literal", "SCoRe, the paper's estimator", ("method=score", "method.branches=1"), ours=True),
    TableRow(
        "multi_turn_literal",
        "multi-turn RL, the paper's estimator",
        ("method=multi_turn", "method.branches=1"),
        ours=True,
    ),
    TableRow("scaled", "(1+alpha) r2 alone", ("method=score", "method.shaping=scaled"), ours=True),
    TableRow("given_r1", "baseline given r1", ("method=score", "method.baseline=given_first"), ours=True),
    TableRow("standardised", "standardised advantages", ("method=score", "method.standardise=true"), ours=True),
    TableRow("gamma_1", "gamma 1", ("method=score", "method.gamma=1"), ours=True),
    TableRow("kl_to_go", "KL credit: to go", ("method=score", "method.kl_credit=to_go"), ours=True),
    TableRow("kl_token", "KL credit: by token", ("method=score", "method.kl_credit=token"), ours=True),
    TableRow(
        "pag",
        METHODS["pag"],
        ("method=pag",),
        ours=True,
        budget_note="an episode has three turns, and the third is played only where the verdict asks for it",
    ),
    TableRow(
        "thinktwice",
        METHODS["thinktwice"],
        ("method=thinktwice",),
        ours=True,
        budget_note="a step of first attempts plays one response less than its share",
    ),
)
ROWS = {row.key: row for row in _ROWS}
"""All rows, in the order in which they run."""

DECIDING = ("score", "multi_turn")
"""Run first, with all seeds: whether SCoRe corrects where multi-turn RL does not."""
CORE = (*DECIDING, "single_turn", "no_stage1", "no_shaping")
"""Run before all others, with all seeds. The base is measured by every run."""


@dataclass(frozen=True, slots=True)
class Claim:
    """The paper says that one row is above another, or above 0, in some quantity."""

    text: str
    quantity: str
    above: str | None
    """Key of the larger row; None stands for 0."""
    below: str | None


@dataclass(frozen=True, slots=True)
class Target:
    title: str
    rows: tuple[str, ...]
    claims: tuple[Claim, ...] = ()


_TABLE_4 = ("single_turn", "no_stage1", "no_shaping", "stage2_star", "offline")
_ESTIMATORS = ("literal", "scaled", "given_r1", "multi_turn_literal")
_SUCCESSORS = ("pag", "thinktwice")
_OURS = tuple(row.key for row in _ROWS if row.ours and row.key not in (*_ESTIMATORS, *_SUCCESSORS))

TARGETS = {
    "table1": Target(
        "Table 1: fine-tuning on self-generated corrections",
        ("base", "star_d", "star_d_plus", "pair_sft_d", "pair_sft_d_plus"),
        (
            Claim("the base does worse at its second attempt", "delta", None, "base"),
            Claim("STaR on D does not fix that: delta stays below 0", "delta", None, "star_d"),
            Claim(
                "right-to-right examples help STaR: delta on D+ is above that on D", "delta", "star_d_plus", "star_d"
            ),
            Claim("Pair-SFT on D improves delta over the base", "delta", "pair_sft_d", "base"),
            Claim("right-to-right examples stop Pair-SFT from correcting", "i_to_c", "pair_sft_d", "pair_sft_d_plus"),
        ),
    ),
    "table2": Target(
        "Table 2: SCoRe against other ways to self-correction",
        ("base", "self_refine", "star_d_plus", "pair_sft_d", "score", "multi_turn"),
        (
            Claim("SCoRe corrects: delta is above 0", "delta", "score", None),
            Claim("SCoRe's first attempts are better than the base's", "t1", "score", "base"),
            Claim("SCoRe's second attempts are better than the base's", "t2", "score", "base"),
            Claim("... than Self-Refine's", "t2", "score", "self_refine"),
            Claim("... than those of STaR on D+", "t2", "score", "star_d_plus"),
            Claim("... than those of Pair-SFT on D", "t2", "score", "pair_sft_d"),
            Claim("SCoRe's delta is above that of STaR on D+", "delta", "score", "star_d_plus"),
            Claim("SCoRe's delta is above that of Pair-SFT on D", "delta", "score", "pair_sft_d"),
            Claim("SCoRe corrects more wrong answers than the base", "i_to_c", "score", "base"),
            Claim("SCoRe breaks fewer right answers than the base", "c_to_i", "base", "score"),
        ),
    ),
    "table3": Target(
        "Table 3: code, trained on MBPP",
        ("base", "self_refine", "pair_sft_d", "score"),
        (
            Claim("SCoRe corrects: delta is above 0", "delta", "score", None),
            Claim("SCoRe's delta is above the base's", "delta", "score", "base"),
            Claim("SCoRe's second attempts are better than those of Pair-SFT", "t2", "score", "pair_sft_d"),
            Claim("Self-Refine does worse at its second attempt", "delta", None, "self_refine"),
        ),
    ),
    "table4": Target(
        "Table 4: what each part of SCoRe is for",
        ("base", "score", "multi_turn", *_TABLE_4, *_OURS),
        (
            Claim("single-turn RL loses the second attempt: delta below 0", "delta", None, "single_turn"),
            Claim("single-turn RL has the better first attempt", "t1", "single_turn", "score"),
            *(
                Claim(f"SCoRe is better than {ROWS[key].label}, in {quantity}", quantity, "score", key)
                for key in _TABLE_4
                for quantity in ("t2", "delta")
            ),
        ),
    ),
    "estimators": Target(
        "The same objective by other estimators: equal in expectation, not in noise",
        ("base", "score", "multi_turn", *_ESTIMATORS),
    ),
    "edits": Target(
        "Edit-distance ratio of the second attempt to the first",
        ("base", "star_d_plus", "pair_sft_d", "score", "multi_turn", "single_turn"),
        (
            Claim("SCoRe edits more than STaR on D+", "edit_ratio", "score", "star_d_plus"),
            Claim("SCoRe edits more than Pair-SFT on D", "edit_ratio", "score", "pair_sft_d"),
            Claim("STaR on D+ copies more often than SCoRe", "copied", "star_d_plus", "score"),
            Claim("Pair-SFT on D copies more often than SCoRe", "copied", "pair_sft_d", "score"),
        ),
    ),
    "collapse": Target(
        "Unchanged answers over training",
        ("score", "multi_turn", "no_stage1", "no_shaping"),
        (
            Claim(
                "multi-turn RL collapses: fewer answers change at the end of training than at its start",
                "changed_fall",
                "multi_turn",
                None,
            ),
            Claim("SCoRe keeps changing more answers than multi-turn RL", "changed_end", "score", "multi_turn"),
        ),
    ),
    "shift": Target(
        "Correction of the model's own first attempts and of the base's",
        ("score", "multi_turn", "star_d_plus", "pair_sft_d"),
        (
            Claim(
                "Pair-SFT corrects the base's first attempts more often than its own (held-out problems)",
                "test_gap",
                "pair_sft_d",
                None,
            ),
            Claim(
                "SCoRe corrects its own first attempts more often than Pair-SFT does (held-out problems)",
                "test_own",
                "score",
                "pair_sft_d",
            ),
        ),
    ),
    "scaling": Target(
        "Majority votes over K responses, and over K/2 that were each corrected once",
        ("base", "score"),
        (
            Claim("SCoRe: half of 32 responses spent on corrections beat 32 parallel ones", "gap_32", "score", None),
            Claim("SCoRe: corrected votes gain over one response", "corrected_gain_32", "score", None),
        ),
    ),
    "attempts": Target(
        "Attempts in a row",
        ("base", "score", "multi_turn"),
        (
            Claim("SCoRe still gains after its second attempt, up to the tenth", "tenth_over_second", "score", None),
            Claim("SCoRe's tenth attempt is better than the base's", "t10", "score", "base"),
        ),
    ),
    "demo": Target(
        "The demo: SCoRe next to multi-turn RL",
        ("base", "multi_turn", "score"),
        (
            Claim("SCoRe corrects: delta is above 0", "delta", "score", None),
            Claim("SCoRe's second attempts are better than multi-turn RL's", "t2", "score", "multi_turn"),
        ),
    ),
    "successors": Target(
        "SCoRe and two methods that came after it, on a base that judges its answers",
        ("base", "score", "multi_turn", *_SUCCESSORS),
    ),
    "countdown": Target(
        "A pretrained language model on countdown",
        ("base", "self_refine", "star_d_plus", "pair_sft_d", "score", "multi_turn", "single_turn", "no_stage1"),
        (
            Claim("SCoRe corrects: delta is above 0", "delta", "score", None),
            Claim("SCoRe's second attempts are better than the base's", "t2", "score", "base"),
            Claim("SCoRe is better than multi-turn RL, in t2", "t2", "score", "multi_turn"),
            Claim("SCoRe is better than multi-turn RL, in delta", "delta", "score", "multi_turn"),
            Claim("SCoRe is better than without Stage I, in t2", "t2", "score", "no_stage1"),
            Claim("single-turn RL has the better first attempt", "t1", "single_turn", "score"),
        ),
    ),
    "levels": Target(
        "Accuracy by difficulty, and what changes between attempts", ("base", "score", "multi_turn", "single_turn")
    ),
}
"""In the order of ``all``."""
ONLY_BY_NAME = ("table3", "demo", "successors", "countdown")
"""Not part of ``all``: table3 needs a code model, successors a base that judges its answers, countdown a language model
warmed up for it, and demo is for ``tiny-rare``."""


@dataclass(frozen=True, slots=True)
class PaperTable:
    """The paper's figures of one target."""

    source: str
    setting: str
    """Model and data of the figures; shown with every figure."""
    columns: tuple[str, ...]
    rows: dict[str, tuple[float, ...]]

    def figures(self, key: str) -> dict[str, float]:
        """Figures by column; empty if the paper has no such row."""
        return dict(zip(self.columns, self.rows.get(key, ()), strict=False))


@cache
def paper_tables() -> dict[str, PaperTable]:
    """The paper's figures, by target."""
    text = resources.files("selfcorrect.reproduce").joinpath("paper.toml").read_text(encoding="utf-8")
    out = {}
    for name, table in tomllib.loads(text).items():
        rows = {key: tuple(v) for key, v in table.items() if key not in ("source", "setting", "columns")}
        out[name] = PaperTable(table["source"], table["setting"], tuple(table["columns"]), rows)
    return out
