"""Break the code on purpose, one named fault at a time: a test must notice each.

    python tools/mutants.py [NAME ...]

Each mutant replaces one piece of text in a copy of ``src`` and runs the few tests that should turn red. Survivors, and
mutants whose text is no longer in the source, make the exit code 1. Nothing in the working tree is touched.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TESTS_FAILED = 1
"""pytest's exit code when tests ran and one failed; any other says that the mutant did not even run."""

CREDIT, ROLLOUT, METHODS = ("tests/test_credit.py",), ("tests/test_play.py",), ("tests/test_stages.py",)
FAMILIES = ("tests/test_families.py",)
IMITATION = ("tests/test_imitation.py",)
SCALE = ("tests/test_test_time.py",)
VLLM = ("tests/test_vllm_sampler.py",)
VERDICT = ("tests/test_verdict.py",)
VERDICT_GRADIENT = (
    "tests/test_exact_gradient.py::test_the_verdict_turn_has_the_expected_gradient_of_its_objective",
    "tests/test_exact_gradient.py::test_a_turn_that_is_not_played_has_no_tokens_and_no_weight",
)
SECONDS_GRADIENT = (
    "tests/test_exact_gradient.py::test_the_seconds_of_one_first_attempt_have_the_gradient_of_attempt_2_alone",
    "tests/test_exact_gradient.py::test_standardised_seconds_of_three_have_that_gradient_times_the_root_of_2",
)
DRAFTS, RATIOS = ("tests/test_drafts.py",), ("tests/test_ratios.py",)


def engine(*names: str) -> tuple[str, ...]:
    return tuple(f"tests/test_engine.py::test_{name}" for name in names)


def attacks(*names: str) -> tuple[str, ...]:
    return tuple(f"tests/verify/test_code_object_attacks.py::test_{name}" for name in names)


def tinker(*names: str) -> tuple[str, ...]:
    return tuple(f"tests/test_tinker_engine.py::test_{name}" for name in names)


def serving(*names: str) -> tuple[str, ...]:
    return tuple(f"tests/test_serve.py::test_{name}" for name in names)


def clients(*names: str) -> tuple[str, ...]:
    return tuple(f"tests/test_serve_clients.py::test_{name}" for name in names)


def run(*names: str) -> tuple[str, ...]:
    return tuple(f"tests/test_train.py::test_{name}" for name in names)


def warming(*names: str) -> tuple[str, ...]:
    return tuple(f"tests/test_warmup.py::test_{name}" for name in names)


def sharing(*names: str) -> tuple[str, ...]:
    return tuple(f"tests/test_export.py::test_{name}" for name in names)


def reproduced(*names: str) -> tuple[str, ...]:
    return tuple(f"tests/test_reproduce.py::test_{name}" for name in names)


def code_tasks(*names: str) -> tuple[str, ...]:
    return tuple(f"tests/test_code_tasks.py::test_{name}" for name in names)


def countdown(*names: str) -> tuple[str, ...]:
    return tuple(f"tests/test_countdown.py::test_{name}" for name in names)


def procedural(*names: str) -> tuple[str, ...]:
    return tuple(f"tests/test_procedural_task.py::test_{name}" for name in names)


@dataclass(frozen=True)
class Mutant:
    name: str
    file: str
    """Below src/selfcorrect."""
    old: str
    """Occurs exactly once in the file."""
    new: str
    tests: tuple[str, ...]


MUTANTS = [
    Mutant(
        "verdict: a lone revision has no weight, so problems that rarely revise count for less",
        "algorithm/baselines.py",
        "if players_G.sum() == 1 and others_G.any():",
        "if False:",
        VERDICT_GRADIENT,
    ),
    Mutant(
        "verdict: the return of a sample is in its own baseline where nobody else revised",
        "algorithm/baselines.py",
        "advantages_G[players_G] = returns_G[players_G] - returns_G[others_G].mean(axis=0)",
        "advantages_G[players_G] = returns_G[players_G] - returns_G[counted_G].mean(axis=0)",
        VERDICT_GRADIENT,
    ),
    Mutant(
        "verdict: answers that were kept are mates of the revisions",
        "algorithm/baselines.py",
        "players_G = counted_G & played_G",
        "players_G = counted_G",
        (f"{VERDICT[0]}::test_mates_at_attempt_2_are_those_that_played_it",),
    ),
    Mutant(
        "verdict: the bonus compares each turn with the turn before",
        "algorithm/verdicts.py",
        "    for columns in roles(credit):\n        part",
        "    for columns in (list(range(len(credit.reward_weights_K))),):\n        part",
        VERDICT_GRADIENT,
    ),
    Mutant(
        "verdict: its reward weight is attempt 1's",
        "algorithm/verdicts.py",
        "reward_weights_K=tuple(credit.reward_weights_K[k] for k in columns),",
        "reward_weights_K=tuple(credit.reward_weights_K[0] for k in columns),",
        VERDICT_GRADIENT,
    ),
    Mutant(
        "verdict: its KL weight is attempt 1's",
        "algorithm/verdicts.py",
        "kl_weights_K=tuple(credit.kl_weights_K[k] for k in columns),",
        "kl_weights_K=tuple(credit.kl_weights_K[0] for k in columns),",
        VERDICT_GRADIENT,
    ),
    Mutant(
        "verdict: both roles are divided by one spread",
        "algorithm/verdicts.py",
        "[_advantages(group)[:, columns].ravel() for group in groups]",
        "[_advantages(group).ravel() for group in groups]",
        VERDICT,
    ),
    Mutant(
        "verdict: it earns where it disagrees",
        "episodes/verdict.py",
        'agrees = (says == "correct") == is_right',
        'agrees = (says == "correct") != is_right',
        VERDICT,
    ),
    Mutant(
        "verdict: a text without one calls the answer wrong",
        "episodes/verdict.py",
        "    if says is None:\n",
        '    says = says or "wrong"\n    if says is None:\n',
        VERDICT,
    ),
    Mutant(
        "verdict: a failure of the verifier counts as a disagreement",
        "episodes/verdict.py",
        "if answer is None or answer.verdict is Verdict.ERROR:",
        "if answer is None:",
        VERDICT,
    ),
    Mutant(
        "verdict: the first one in a text counts, not the last",
        "episodes/verdict.py",
        "match = found[-1] if found",
        "match = found[0] if found",
        VERDICT,
    ),
    Mutant(
        "verdict: without one attempt 2 is played",
        "episodes/play.py",
        'return verdict.finished and said(verdict.text) == "wrong"',
        'return said(verdict.text) != "correct"',
        VERDICT,
    ),
    Mutant(
        "verdict: the stop rule holds for everybody",
        "episodes/play.py",
        'elif how.stop and how.turn(k) == "verdict"',
        'elif how.turn(k) == "verdict"',
        VERDICT,
    ),
    Mutant(
        "verdict: an attempt that was not played is wrong",
        "episodes/play.py",
        'if reply.stop == "kept":\n            return answered\n',
        'if reply.stop == "kept":\n            return Grade(Verdict.WRONG)\n',
        VERDICT,
    ),
    Mutant(
        "verdict: verdict turns count as attempts in a table",
        "episodes/table.py",
        "a for a in e.answers if a.grade is not None",
        "a for a in e.attempts if a.grade is not None",
        VERDICT,
    ),
    Mutant(
        "verdict: its own tokens are not taken off what it saves",
        "episodes/verdict.py",
        'if a.turn == "verdict")\n',
        'if a.turn == "none")\n',
        VERDICT,
    ),
    Mutant(
        "verdict: balanced accuracy is plain accuracy",
        "episodes/verdict.py",
        "return (sum(right) / len(right) + sum(wrong) / len(wrong)) / 2",
        "return sum([*right, *wrong]) / len([*right, *wrong])",
        VERDICT,
    ),
    Mutant(
        "verdict: always correct rings where all answers are right",
        "training/alarms.py",
        "> ONE_SIDED and 1 - right > STILL_WRONG:",
        "> ONE_SIDED:",
        VERDICT,
    ),
    Mutant(
        "verdict: a base that never gives one is trained",
        "measuring/evaluate.py",
        "if found.says_nothing.value == 1:",
        "if found.says_nothing.value > 1:",
        VERDICT,
    ),
    Mutant(
        "verdict: the server answers with what was not played",
        "serve/correct.py",
        "chosen, votes = 0, None",
        "chosen, votes = 0, None\n    played = [tuple(chain) for chain in chains]",
        serving("attempt_2_is_skipped_where_the_model_calls_attempt_1_correct"),
    ),
    Mutant(
        "thinktwice: seconds have a bonus",
        "algorithm/stages.py",
        "Credit((0, 1), (0, m.beta1)), branches=group)",
        "Credit((0, 1), (0, m.beta1), alpha=5), branches=group)",
        SECONDS_GRADIENT,
    ),
    Mutant(
        "thinktwice: a step of seconds is weighted by its number of branches",
        "algorithm/trees.py",
        "*(w / branches for _, w in two.weights)",
        "*(w for _, w in two.weights)",
        SECONDS_GRADIENT,
    ),
    Mutant(
        "thinktwice: the two steps of a round play different problems",
        "training/kinds.py",
        "context.batch(first + a_round)",
        "context.batch(at.step)",
        (f"{VERDICT[0]}::test_thinktwice_alternates_on_the_same_problems_and_keeps_the_optimiser",),
    ),
    Mutant(
        "thinktwice: every step is on first attempts",
        "training/kinds.py",
        "reinforce(context, rows[turn], at",
        "reinforce(context, rows[0], at",
        (f"{VERDICT[0]}::test_thinktwice_alternates_on_the_same_problems_and_keeps_the_optimiser",),
    ),
    Mutant(
        "thinktwice: the best checkpoint is chosen by first attempts too",
        "training/loop.py",
        "r.reward[-1] for r in window if len(r.reward) == stage.attempts]",
        "r.reward[-1] for r in window]",
        (f"{VERDICT[0]}::test_thinktwice_alternates_on_the_same_problems_and_keeps_the_optimiser",),
    ),
    Mutant(
        "the map takes the difference the wrong way round",
        "reproduce/map_results.py",
        "welch_across_seeds(multi_turn, score)",
        "welch_across_seeds(score, multi_turn)",
        ("tests/test_map.py",),
    ),
    Mutant(
        "a claim whose interval holds 0 counts as reproduced",
        "reproduce/verdicts.py",
        "difference.low > 0",
        "difference.value > 0",
        reproduced("the_interval_decides"),
    ),
    Mutant(
        "seeds that agree by chance make a claim reproduced",
        "reproduce/verdicts.py",
        " or difference.low == difference.high != 0:",
        ":",
        reproduced("the_interval_decides"),
    ),
    Mutant(
        "a claim's two rows are swapped",
        "reproduce/measured.py",
        "return paired_estimate(lows, highs, support)",
        "return paired_estimate(highs, lows, support)",
        reproduced("a_table_of_runs_written_by_hand"),
    ),
    Mutant(
        "rows of unequal responses make a table",
        "reproduce/budget.py",
        "(s.steps, s.responses) != (first.steps, first.responses)",
        "s.steps != first.steps",
        reproduced("equal_budgets_pass_and_unequal_ones_make_no_table"),
    ),
    Mutant(
        "shift gives the trained model its own first attempts as the base's",
        "reproduce/kept.py",
        "    load_kept(run, engine)\n    engine.restore(BASE)\n",
        "    load_kept(run, engine)\n",
        reproduced("shift_plays_the_kept_checkpoint_after_the_bases_first_attempts"),
    ),
    Mutant(
        "a run's hash leaves out the settings of training",
        "reproduce/choice.py",
        'exclude={"run_dir", "sft", "trackers"}',
        'exclude={"run_dir", "sft", "trackers", "train"}',
        reproduced("a_run_is_known_by_its_settings"),
    ),
    Mutant(
        "wrong and right are swapped in i to c",
        "episodes/table.py",
        "(~before & after) if to_right",
        "(before & ~after) if to_right",
        ("tests/test_comparison.py",),
    ),
    Mutant(
        "an averaging server is not corrected for",
        "engines/tinker_engine/probes.py",
        "n = len(data) if self.mean_over_data else 1",
        "n = 1",
        tinker("whatever_the_server_averages_a_step_is_that_of_the_sum"),
    ),
    Mutant(
        "a training request of unknown fate is sent again",
        "engines/tinker_engine/engine.py",
        "norm = policy.optim_step(adam)",
        "norm = retried(lambda: policy.optim_step(adam))",
        tinker("an_unclear_failure_of_training_is_never_sent_again"),
    ),
    Mutant(
        "a lost server's records are not cut back",
        "experiment.py",
        "            run.rewind(again)\n",
        "",
        tinker("a_run_that_loses_its_server_replays_and_counts_nothing_twice"),
    ),
    Mutant(
        "KL from the sampler's log-probs in bfloat16",
        "training/step.py",
        "current = None if exact else",
        "current = None if True else",
        run("in_bf16_the_kl_of_an_unmoved_policy_is_exactly_0"),
    ),
    Mutant(
        "sign of the loss",
        "algorithm/losses.py",
        "return -((logprobs_N - sampled",
        "return ((logprobs_N - sampled",
        engine("both_losses_have_the_policy_gradient_on_policy"),
    ),
    Mutant(
        "no importance ratio",
        "algorithm/losses.py",
        "logprobs_N - sampled_logprobs_N.detach()",
        "logprobs_N - logprobs_N.detach()",
        engine("off_policy_the_ratio_scales_the_gradient"),
    ),
    Mutant(
        "mask shifted by one",
        "algorithm/sequences.py",
        "spans.append((k, len(attempt.prompt_ids), len(tokens)))",
        "spans.append((k, len(attempt.prompt_ids) - 1, len(tokens) - 1))",
        ROLLOUT,
    ),
    Mutant(
        "problems are played one after another",
        "episodes/play.py",
        "list(await asyncio.gather(*groups))",
        "[await group for group in groups]",
        ROLLOUT,
    ),
    Mutant(
        "end token without weight",
        "algorithm/sequences.py",
        "spans.append((k, len(attempt.prompt_ids), len(tokens)))",
        "spans.append((k, len(attempt.prompt_ids), len(tokens) - 1))",
        ROLLOUT,
    ),
    Mutant(
        "prediction read at its own column",
        "engines/torch_engine/passes.py",
        "(places_N - 1)",
        "places_N",
        engine("logprobs_equal_the_plain_model"),
    ),
    Mutant(
        "positions start again after a shared prompt",
        "engines/torch_engine/passes.py",
        "torch.minimum(starts_B1 + steps_T",
        "torch.minimum(0 * starts_B1 + steps_T",
        engine("a_prompt_computed_once_changes_no_log_prob_and_no_gradient"),
    ),
    Mutant(
        "padding of a shorter shared prompt is attended to",
        "engines/torch_engine/passes.py",
        "< starts_B1",
        "< 10**6 + starts_B1",
        engine("a_prompt_computed_once_changes_no_log_prob_and_no_gradient"),
    ),
    Mutant(
        "a shared prompt gets no gradient from its rows",
        "engines/torch_engine/passes.py",
        "        seam.backward()\n",
        "",
        engine("a_prompt_computed_once_changes_no_log_prob_and_no_gradient"),
    ),
    Mutant(
        "gradients of rows wait for those of the prompt they share",
        "engines/torch_engine/passes.py",
        "if not tensor.requires_grad",
        "if tensor is not None",
        engine("rows_give_a_weight_their_gradient_before_the_prompt_they_share_does"),
    ),
    Mutant(
        "the cache is given by a name that the decoder does not know",
        "engines/torch_engine/cache.py",
        "if name in takes",
        "if takes",
        engine("a_decoder_gets_its_cache_by_the_name_it_gives_it"),
    ),
    Mutant(
        "a fence that closes a program is read as one that opens the words after it",
        "verify/code/extract.py",
        "if whole and reader.first_closes and reader.fences % 2:",
        "if False:",
        ("tests/verify/test_code_extract.py",),
    ),
    Mutant(
        "a program's own name in brackets ends the program",
        "verify/code/extract.py",
        "and not own and _END",
        "and _END",
        ("tests/verify/test_code_markers.py",),
    ),
    Mutant(
        "an object that met data of the tests is asked for its value",
        "verify/code/inside/remote.py",
        "if what in _VALUE or collapsed:",
        "if collapsed:",
        attacks("what_met_data_of_the_tests_answers_for_no_value"),
    ),
    Mutant(
        "an exception of the program ends a loop of the tests",
        "verify/code/inside/channel.py",
        " and not issubclass(known, StopIteration | StopAsyncIteration)",
        "",
        attacks("an_exception_class_of_the_prompt_cannot_end_a_loop_of_the_tests"),
    ),
    Mutant(
        "a class of the program judges data in the place of a function",
        "verify/code/inside/judge.py",
        'name in job["classes"]',
        "name[:1].isupper()",
        attacks("a_class_in_the_place_of_a_capitalised_function_is_wrong"),
    ),
    Mutant(
        "bonus on attempt 1",
        "algorithm/credit.py",
        "bonus_GK[:, 1:] = alpha",
        "bonus_GK[:, :-1] = alpha",
        CREDIT,
    ),
    Mutant(
        "bonus clamped",
        "algorithm/credit.py",
        "bonus_GK[:, 1:] = alpha * (rewards_GK[:, 1:] - rewards_GK[:, :-1])",
        "bonus_GK[:, 1:] = np.clip(alpha * (rewards_GK[:, 1:] - rewards_GK[:, :-1]), -1, 1)",
        CREDIT,
    ),
    Mutant(
        "bonus against attempt 1 instead of the previous one",
        "algorithm/credit.py",
        "rewards_GK[:, 1:] - rewards_GK[:, :-1]",
        "rewards_GK[:, 1:] - rewards_GK[:, :1]",
        CREDIT,
    ),
    Mutant(
        "beta2 on attempt 2",
        "algorithm/stages.py",
        "(m.beta1 + m.beta2, m.beta1)",
        "(m.beta1, m.beta1 + m.beta2)",
        METHODS,
    ),
    Mutant(
        "beta1 dropped on attempt 2 in Stage I",
        "algorithm/stages.py",
        "(m.beta1 + m.beta2, m.beta1)",
        "(m.beta1 + m.beta2, 0)",
        METHODS,
    ),
    Mutant(
        "Stage I rewards attempt 1",
        "algorithm/stages.py",
        "Credit((0, 1), (m.beta1 + m.beta2",
        "Credit((1, 1), (m.beta1 + m.beta2",
        METHODS,
    ),
    Mutant(
        "baseline given r1 on attempt 1 too",
        "algorithm/weights.py",
        "if k and credit.baseline",
        "if credit.baseline",
        CREDIT,
    ),
    Mutant(
        "mates whatever their first verdict",
        "algorithm/baselines.py",
        "first_rewards_G == r1)",
        "first_rewards_G >= 0)",
        CREDIT,
    ),
    Mutant(
        "the KL standardised with the reward",
        "algorithm/weights.py",
        "credit.kl_weights_K[k] * kl_part_GT[g, :length]",
        "credit.kl_weights_K[k] * np.sign(kl_part_GT[g, :length])",
        CREDIT,
    ),
    Mutant(
        "standardised over uncounted samples",
        "algorithm/baselines.py",
        "np.std(advantages_G[counted_G])",
        "np.std(advantages_G)",
        CREDIT,
    ),
    Mutant(
        "scaled shaping without its one",
        "algorithm/variants.py",
        "w + credit.alpha for w",
        "credit.alpha for w",
        METHODS,
    ),
    Mutant(
        "a tree's second attempts count in full",
        "algorithm/trees.py",
        "w / branches for",
        "w for",
        CREDIT,
    ),
    Mutant(
        "adaptive beta2 turned round",
        "algorithm/variants.py",
        "if kl > 1.5 * target:",
        "if kl < 1.5 * target:",
        CREDIT,
    ),
    Mutant(
        "the last attempt against the earlier reference",
        "algorithm/sequences.py",
        "[*held_K[:-1], base_K[-1]]",
        "[base_K[0], *held_K[1:]]",
        ROLLOUT,
    ),
    Mutant(
        "STaR keeps what was right already",
        "algorithm/imitation.py",
        "if last.correct and (first.wrong or (keep_right",
        "if last.correct and (True or (keep_right",
        IMITATION,
    ),
    Mutant(
        "attempt 1 is imitated too",
        "algorithm/imitation.py",
        "k > 0 or train_attempt1",
        "True",
        IMITATION,
    ),
    Mutant(
        "cross-entropy divided by examples",
        "algorithm/imitation.py",
        "t / total,",
        "t / len(sequences_T),",
        IMITATION,
    ),
    Mutant(
        "STaR goes on from the policy so far",
        "training/kinds.py",
        "context.engine.restore(how.start)",
        "pass",
        run("star_samples_the_policy_so_far_and_tunes_the_base"),
    ),
    Mutant(
        "collected responses not counted",
        "training/collect.py",
        "progress.sampled_responses + sum(r.sampled_responses for r in records)",
        "progress.sampled_responses",
        run("every_method_samples_the_same_number_of_responses_per_step"),
    ),
    Mutant(
        "more attempts rewarded in Stage I than the last",
        "algorithm/variants.py",
        "(w1,) * (attempts - 1) + (w2,)",
        "(w1,) + (w2,) * (attempts - 1)",
        METHODS,
    ),
    Mutant(
        "the bonus stays on under scaled shaping",
        "algorithm/variants.py",
        "reward_weights_K=rewards, alpha=0)",
        "reward_weights_K=rewards)",
        METHODS,
    ),
    Mutant(
        "a resumed warm-up starts its demonstrations again",
        "training/kinds.py",
        "progress.stage_step * how.per_step, None)",
        "0, None)",
        warming("stopped_and_resumed_is_uninterrupted_bit_for_bit"),
    ),
    Mutant(
        "the warm-up's rate does not fall",
        "training/kinds.py",
        "(1 - 0.9 * at.stage_step / stage.steps)",
        "1",
        warming("it_is_plain_cross_entropy_on_the_answers_with_a_falling_rate"),
    ),
    Mutant("gamma leaks", "algorithm/credit.py", "+= gamma * returns", "+= returns", CREDIT),
    Mutant(
        "gamma is 1 by default", "config/methods.py", "gamma: float = Field(0.0", "gamma: float = Field(1.0", METHODS
    ),
    Mutant(
        "denominator is a token count",
        "algorithm/sequences.py",
        "* (1.0 / len(episodes))",
        "* (1.0 / sequence.sampled_T.sum())",
        ROLLOUT,
    ),
    Mutant(
        "groups without signal left out of the denominator",
        "algorithm/sequences.py",
        "(1.0 / len(episodes))",
        "(1.0 / (sum(len(g) for g in layout.groups if len({e.attempts[-1].correct for e in g}) > 1) or 1))",
        ROLLOUT,
    ),
    Mutant(
        "baseline includes the sample itself",
        "algorithm/credit.py",
        "(kept.sum(axis=0) - kept) / (n - 1)",
        "kept.sum(axis=0) / n",
        CREDIT,
    ),
    Mutant(
        "advantages standardised",
        "algorithm/credit.py",
        "kept - (kept.sum(axis=0) - kept) / (n - 1)",
        "(kept - kept.mean(axis=0)) / (kept.std(axis=0) + 1e-8)",
        CREDIT,
    ),
    Mutant(
        "sign of the KL",
        "algorithm/weights.py",
        "- credit.kl_weights_K[k] * kl_part",
        "+ credit.kl_weights_K[k] * kl_part",
        CREDIT,
    ),
    Mutant(
        "KL as a number in attempt 2's return only",
        "algorithm/weights.py",
        "- credit.kl_weights_K[k] * kl_part",
        "- (k > 0) * credit.kl_weights_K[k] * kl_part",
        CREDIT,
    ),
    Mutant(
        "a verifier's failure is a reward of 0",
        "types.py",
        "a.grade is not None and a.grade.verdict is not Verdict.ERROR for a",
        "a.grade is not None for a",
        ROLLOUT,
    ),
    Mutant(
        "a feedback turn is asked for with the instruction",
        "episodes/play.py",
        'then = instruction if how.between is None or how.turn(k + 1) == "answer" else how.between',
        "then = instruction",
        (*ROLLOUT, "tests/test_endpoint.py::test_self_refine_asks_for_feedback_and_shows_it_to_the_next_attempt"),
    ),
    Mutant(
        "a refused conversation is continued",
        "episodes/play.py",
        "asked = [(i, b) for i, b in rows if i not in over]",
        "asked = rows",
        ("tests/test_endpoint.py::test_a_refused_turn_of_self_refine_ends_its_episode",),
    ),
    Mutant(
        "attempt 1 decoded and encoded again",
        "engines/chat.py",
        "return Prompt((*prompt.ids, *answer, *bridge), prompt.first, turns)",
        "return Prompt((*prompt.ids, *self._encode(self.tokenizer.decode(answer)), *bridge), prompt.first, turns)",
        ROLLOUT,
    ),
    Mutant(
        "a cut answer's turn is not closed",
        "engines/chat.py",
        "bridge = self.bridge_ids(prompt.first, request, self.ended(answer))",
        "bridge = self.bridge_ids(prompt.first, request, True)",
        ROLLOUT,
    ),
    Mutant(
        "an answer's turn is closed twice",
        "engines/chat.py",
        "bridge = self.bridge_ids(prompt.first, request, self.ended(answer))",
        "bridge = self.bridge_ids(prompt.first, request, False)",
        FAMILIES,
    ),
    Mutant(
        "the model's end ids are not read",
        "engines/chat.py",
        "for i in (tokenizer.eos_token_id, *end_ids) if",
        "for i in (tokenizer.eos_token_id,) if",
        FAMILIES,
    ),
    Mutant(
        "a stripped history shows the thinking",
        "engines/chat.py",
        "turns = (*prompt.turns, (parts.answer.strip(), own, request))",
        "turns = (*prompt.turns, (self.text(answer).strip(), own, request))",
        FAMILIES,
    ),
    Mutant(
        "the verdict reads the thinking",
        "episodes/play.py",
        "            parts.answer,\n",
        "            chat.text(ids),\n",
        ("tests/test_thinking.py::test_the_verdict_reads_the_answer_and_the_record_keeps_the_thinking",),
    ),
    Mutant(
        "padding moves the positions of a batch",
        "engines/torch_engine/passes.py",
        "torch.minimum(starts_B1 + steps_T, batch.columns_N.max())",
        "starts_B1 + steps_T",
        ("tests/test_architectures.py::test_padding_behind_a_shared_beginning_stays_within_the_longest_sequence",),
    ),
    Mutant(
        "a token of a tree sees itself alone",
        "engines/torch_engine/passes.py",
        "sees_TT[column] |= sees_TT[parent]",
        "pass",
        ("tests/test_engine.py::test_trees_change_no_log_prob_and_no_gradient",),
    ),
    Mutant(
        "a token of a tree is read where it stands, not before it",
        "engines/torch_engine/passes.py",
        "trees[row].paths[i][c - 1]",
        "trees[row].paths[i][c - 2]",
        ("tests/test_engine.py::test_trees_change_no_log_prob_and_no_gradient",),
    ),
    Mutant(
        "longrope runs beyond its first length",
        "engines/models.py",
        "if limit is not None and limit < max_length:",
        "if False:",
        ("tests/test_architectures.py::test_longrope_is_refused_only_beyond_its_first_length",),
    ),
    Mutant(
        "a failed generation is an answer",
        "episodes/completion.py",
        "if error or not known:",
        "if False:",
        ("tests/test_replies.py",),
    ),
    Mutant(
        "given answers are trained on",
        "algorithm/sequences.py",
        'if attempt.source != "sampled":',
        'if attempt.source == "kept":',
        ROLLOUT,
    ),
    Mutant(
        "reference reset to the Stage I checkpoint",
        "training/loop.py",
        "engine.reset_optimiser()",
        "engine.reset_optimiser(), engine.snapshot(BASE)",
        run("the_reference_of_stage_2_is_the_base_not_the_stage_1_checkpoint"),
    ),
    Mutant(
        "optimiser kept between stages",
        "training/loop.py",
        "engine.reset_optimiser()",
        "pass",
        run("the_optimiser_starts_afresh_in_stage_2"),
    ),
    Mutant(
        "training at temperature 0.7",
        "training/step.py",
        '1.0,\n        (config.seed, "train"',
        '0.7,\n        (config.seed, "train"',
        run("training_samples_at_temperature_1_with_the_cap_and_the_end_tokens"),
    ),
    Mutant(
        "log-probs of another temperature than the samples",
        "engines/torch_engine/sampler.py",
        "_inverse_cdf(probs_BV,",
        "_inverse_cdf(probs_BV ** (1 / 0.7),",
        engine("sampling_follows_the_softmax_at_the_asked_temperature"),
    ),
    Mutant(
        "snapshot is the current policy",
        "engines/torch_engine/weights.py",
        "[p.detach().clone() for p in self._params]",
        "[p.detach() for p in self._params]",
        engine("a_snapshot_never_moves_and_kl_to_it_is_exactly_0_before_the_first_step"),
    ),
    Mutant(
        "prefix cache kept across publish",
        "engines/torch_engine/sampler.py",
        'so this only drops the caches."""\n        self.drop_caches()',
        'so this only drops the caches."""',
        engine("publish_drops_the_caches"),
    ),
    Mutant(
        "published weights without the adapters",
        "engines/torch_engine/checkpoint.py",
        "total = total + layer.get_delta_weight(adapter)",
        "total = total + 0 * layer.get_delta_weight(adapter)",
        VLLM,
    ),
    Mutant(
        "a second sampler keeps its first weights",
        "engines/torch_engine/engine.py",
        "self._sampler.publish(checkpoint_tensors(self._base))",
        "self._sampler.drop_caches()",
        VLLM,
    ),
    Mutant(
        "vLLM samples all requests from one stream",
        "engines/torch_engine/vllm_sampler.py",
        "seed=request.stream_key() % 2**63",
        "seed=0",
        VLLM,
    ),
    Mutant(
        "positions count the padding",
        "engines/torch_engine/sampler.py",
        "positions_BW = cache.lengths_B[:, None] + steps_W",
        "positions_BW = cache.lengths_B.max() + steps_W.expand_as(real_BW)",
        engine("row_order_batch_split_and_neighbours_do_not_change_the_tokens"),
    ),
    Mutant(
        "ratios are truncated from below",
        "algorithm/ratios.py",
        "(gap_T > np.log(cap))",
        "(gap_T < np.log(cap))",
        RATIOS,
    ),
    Mutant(
        "a truncated token keeps its ratio",
        "algorithm/ratios.py",
        "np.exp(np.log(cap) - gap_T.clip(min=0))",
        "np.exp(0 * gap_T)",
        RATIOS,
    ),
    Mutant(
        "sequences below the band stay",
        "algorithm/ratios.py",
        "abs(gap_T[datum.sampled_T].mean())",
        "gap_T[datum.sampled_T].mean()",
        RATIOS,
    ),
    Mutant(
        "ratios are bounded where the sampler is exact",
        "config/sections.py",
        "(None, None) if exact_sampler",
        "(2.0, 1.5) if exact_sampler",
        RATIOS,
    ),
    Mutant(
        "draws after a wrong draft count",
        "engines/torch_engine/sampler.py",
        "wrong = token != expected or row.ended",
        "wrong = row.ended",
        DRAFTS,
    ),
    Mutant(
        "a draft moves the random stream",
        "engines/torch_engine/sampler.py",
        "row.uniforms[min(len(row.token_ids) + j, len(row.uniforms) - 1)]",
        "row.uniforms[len(row.token_ids) - (j > 0)]",
        DRAFTS,
    ),
    Mutant(
        "a token sees the drafts after it",
        "engines/torch_engine/sampler.py",
        "torch.arange(end) <= slots_BW[..., None]",
        "torch.arange(end) <= slots_BW.amax(1)[:, None, None].expand(-1, width, 1)",
        DRAFTS,
    ),
    Mutant(
        "a place is lost after one wrong draft",
        "engines/torch_engine/drafts.py",
        "if holds or (was == FOLLOWING and predicted not in self._stop_ids):",
        "if holds:",
        DRAFTS,
    ),
    Mutant(
        "best checkpoint by attempt 1",
        "training/loop.py",
        "[r.reward[-1] for r in window",
        "[r.reward[0] for r in window",
        run("the_best_checkpoint_is_that_of_the_last_attempts_reward_over_the_window_in_the_final_stage"),
    ),
    Mutant(
        "records not cut back on resume",
        "records/run_directory.py",
        "os.truncate(file, size)",
        "pass",
        run("records_written_after_the_checkpoint_are_cut_back"),
    ),
    Mutant(
        "optimiser state not saved",
        "engines/torch_engine/weights.py",
        "self._adam.load_state_dict(",
        "dict(",
        run("interrupted_and_resumed_is_uninterrupted_bit_for_bit"),
    ),
    Mutant(
        "a client that does not read keeps its place",
        "serve/connection.py",
        "self.loop.call_later(self._limits.write_timeout_s, self.transport.abort)",
        "self.loop.call_later(9_999, self.transport.abort)",
        clients("a_client_that_does_not_read_frees_its_place"),
    ),
    Mutant(
        "idle connections do not make room",
        "serve/connection.py",
        "if len(self.connections) < self.limit_concurrency:",
        "if True:",
        clients("idle_connections_lock_nobody_out_and_are_ended"),
    ),
    Mutant(
        "bytes of a head win time",
        "serve/connection.py",
        "        super().data_received(data)\n        if self._is_busy:",
        "        super().data_received(data)\n        if True:",
        clients("idle_connections_lock_nobody_out_and_are_ended"),
    ),
    Mutant(
        "a busy connection makes room",
        "serve/connection.py",
        "for c in others if c.idle_since is not None]",
        "for c in others if c.idle_since is None]",
        clients("a_busy_connection_never_has_to_make_room"),
    ),
    Mutant(
        "a refused body is read without end",
        "serve/connection.py",
        "if self._n_unread > self._limits.body_bytes:",
        "if False:",
        clients("the_body_of_a_refused_request_is_not_read_without_end"),
    ),
    Mutant(
        "a bug of the engine ends the worker",
        "serve/engine_backend.py",
        "except Exception as error:  # noqa: BLE001",
        "except ArithmeticError as error:  # noqa: BLE001",
        serving("a_bug_in_the_engine_fails_its_requests_only"),
    ),
    Mutant(
        "the end of the engine's thread is not told",
        "serve/engine_backend.py",
        "if self.broken is not None and self._call is not None:",
        "if False:",
        serving("the_end_of_the_engines_thread_is_told"),
    ),
    Mutant(
        "refused problems count as texts",
        "measuring/metrics.py",
        "some_E = texts_E & (length_E > 0)",
        "some_E = length_E > 0",
        ("tests/test_endpoint.py::test_a_refused_problem_is_an_error_and_the_others_are_measured",),
    ),
    Mutant(
        "refused problems are not asked for again",
        "measuring/endpoint.py",
        ".items() if not was_refused(e)}",
        ".items()}",
        ("tests/test_endpoint.py::test_a_refused_problem_is_an_error_and_the_others_are_measured",),
    ),
    Mutant(
        "any key opens the server",
        "serve/app.py",
        'if scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), self._key):',
        'if scheme.lower() == "bearer":',
        serving("a_key_is_needed_where_one_is_set"),
    ),
    Mutant(
        "requests that are over are still counted",
        "serve/app.py",
        "        self._in_flight -= 1",
        "        self._in_flight -= 0",
        serving("too_many_too_slow_and_gone_clients"),
    ),
    Mutant(
        "the rarest answer wins the vote",
        "measuring/votes.py",
        "item[0] is None, -item[1])",
        "item[0] is None, item[1])",
        serving("the_vote_takes_the_most_frequent_final_answer"),
    ),
    Mutant(
        "a batch's longest cap for all of it",
        "serve/engine_backend.py",
        "cut(a, w.params.max_new_tokens) for w, a",
        "a for w, a",
        serving("unequal_caps_and_temperatures_give_what_each_would_get_alone"),
    ),
    Mutant(
        "a refused request is sent again",
        "episodes/endpoint.py",
        "if status in PASSING or status >= 500:",
        "if True:",
        ("tests/test_endpoint.py::test_what_will_not_pass_is_not_sent_again",),
    ),
    Mutant(
        "finished episodes are asked for again",
        "measuring/endpoint.py",
        "for p, g in keys if (p.id, g) not in done)",
        "for p, g in keys)",
        ("tests/test_endpoint.py::test_stopped_and_continued_is_the_same_as_uninterrupted",),
    ),
    Mutant(
        "an answer that ends at the cap counts as cut",
        "measuring/probe.py",
        "return length > cap or",
        "return length >= cap or",
        ("tests/test_probe_command.py",),
    ),
    Mutant(
        "a rule of the probe speaks at its threshold",
        "measuring/advice.py",
        "n.changed < alarms.NEVER_CHANGED:",
        "n.changed <= alarms.NEVER_CHANGED:",
        ("tests/test_probe_command.py",),
    ),
    Mutant(
        "a torn verdict line is kept",
        "verify/batch.py",
        'torn = not line.endswith(b"\\n")',
        "torn = False",
        ("tests/test_grade_command.py::test_resume_goes_on_behind_the_whole_lines",),
    ),
    Mutant(
        "half of a surrogate pair is graded",
        "verify/cases.py",
        "return _check_text(_model_text(fields, name), name)",
        "return _model_text(fields, name)",
        ("tests/test_grade_command.py::test_every_broken_row_is_an_error_with_its_reason_and_costs_no_other_row",),
    ),
    Mutant(
        "HumanEval shows its tests",
        "tasks/humaneval.py",
        "PROMPT.format(prompt=problem.question.rstrip())",
        "PROMPT.format(prompt=problem.question.rstrip() + problem.answer)",
        code_tasks("humaneval_shows_no_test"),
    ),
    Mutant(
        "a forgeable pass earns reward",
        "tasks/programs.py",
        "code_grader(not for_reward,",
        "code_grader(True,",
        code_tasks("in_training_a_pass_that_could_be_forged_earns_nothing_and_measuring_stays_the_same"),
    ),
    Mutant(
        "repair samples its first attempts",
        "measuring/evaluate.py",
        "return given_answers(self.engine.chat, task, problems, samples) if isinstance(task, GivesFirst) else None",
        "return None",
        code_tasks("repair_starts_from_the_stored_program_and_measures_attempt_2"),
    ),
    Mutant(
        "the longest conversation by the question alone",
        "episodes/play.py",
        "key=lambda p: _characters(task, p)",
        "key=lambda p: len(p.question)",
        ("tests/test_tasks.py::test_the_longest_conversation_is_found_by_what_is_shown_not_by_the_question",),
    ),
    Mutant(
        "a user's failing verifier counts as wrong",
        "tasks/user_code.py",
        'return Grade(Verdict.ERROR, None, f"{name} raised',
        'return Grade(Verdict.WRONG, None, f"{name} raised',
        ("tests/test_own_task.py::test_a_verifier_that_fails_is_an_error_with_its_reason_and_never_a_0",),
    ),
    Mutant(
        "countdown counts a number twice",
        "tasks/countdown.py",
        "(extra := used - Counter(numbers))",
        "(extra := Counter(set(used) - set(numbers)))",
        countdown("one_number_is_not_two_positions"),
    ),
    Mutant(
        "countdown leaves numbers unused",
        "tasks/countdown.py",
        "not two and used != Counter(numbers)",
        "two and used != Counter(numbers)",
        countdown("verdicts_on_expressions", "verdicts_on_pairs"),
    ),
    Mutant(
        "countdown allows every operation",
        "tasks/countdown.py",
        "operations_in(tree) - set(allowed)",
        'operations_in(tree) - set("+-*/")',
        countdown("an_operation_that_the_question_does_not_allow_is_wrong"),
    ),
    Mutant(
        "a check is sound whatever it concludes",
        "tasks/countdown.py",
        'and (word == "yes") == (exact == problem.meta["target"])',
        "",
        countdown("sound_checks_of_pairs"),
    ),
    Mutant(
        "a false step leaves a check sound",
        "tasks/countdown.py",
        "all(t is not None and value(t) == exact for t in trees)",
        "value(trees[-1] or 0) == exact",
        countdown("sound_checks_of_expressions"),
    ),
    Mutant(
        "subtraction reads from the right",
        "tasks/expressions.py",
        "self.operations(_RANK[sign] + 1, depth)",
        "self.operations(_RANK[sign], depth)",
        countdown("values_golden"),
    ),
    Mutant(
        "a demonstrated second attempt knows that the first was wrong",
        "tasks/procedural.py",
        "tuple(attempt(problem) for _ in range(self.demonstrated_attempts))",
        "(first := attempt(problem), attempt(problem) if first[0] else (True, self.demonstrate(problem, True, rng)))",
        countdown("demonstrations_teach_the_form_a_sound_check_and_no_correction"),
    ),
    Mutant(
        "a problem may be in two splits",
        "tasks/procedural.py",
        "if key not in found and split_of(key) == split:",
        "if key not in found:",
        procedural("a_task_of_three_functions", "a_key_joins_questions_that_are_the_same_problem"),
    ),
    Mutant(
        "the order of the numbers makes another problem",
        "tasks/procedural.py",
        "key = drawn.question if drawn.key is None else drawn.key",
        "key = drawn.question",
        procedural("a_key_joins_questions_that_are_the_same_problem"),
    ),
    Mutant(
        "a space that is too small is taken as it is",
        "tasks/procedural.py",
        "        if len(found) < count:\n",
        "        if not found:\n",
        procedural("the_base_ends_where_nothing_new_can_be_drawn"),
    ),
    Mutant(
        "a wrong answer demonstrated as right passes",
        "measuring/validate.py",
        "if grade.verdict not in meant:",
        "if grade.verdict is Verdict.NO_ANSWER:",
        procedural("a_faulty_demonstration_is_told"),
    ),
    Mutant(
        "an unknown option is dropped",
        "tasks/user_code.py",
        "        refuse_unknown_options(options, defaults, name)",
        "        options = {o: v for o, v in options.items() if o in defaults}",
        procedural("faults_of_an_imported_task_are_refused"),
    ),
    Mutant(
        "a partial score of reasoning-gym is right",
        "tasks/reasoning_gym.py",
        "if score >= 1 else",
        "if score > 0 else",
        procedural("a_partial_score_is_wrong"),
    ),
    Mutant(
        "a score of reasoning-gym runs a model's text",
        "tasks/reasoning_gym.py",
        " and config.accept_risk != RISK_NAME",
        " and config.accept_risk is RISK_NAME",
        procedural("what_reasoning_gym_cannot_do_is_refused"),
    ),
    Mutant(
        "a tied vote is won outright",
        "measuring/votes.py",
        "blanks, k - votes - drawn), tied + 1)",
        "blanks, k - votes - drawn), 1)",
        SCALE,
    ),
    Mutant(
        "corrected samples vote with as many responses as parallel ones",
        "measuring/test_time.py",
        "_majorities(last_votes, k // 2)",
        "_majorities(last_votes, min(k, len(last_votes[0])))",
        SCALE,
    ),
    Mutant(
        "texts without an answer vote",
        "measuring/test_time.py",
        "if grade is None or grade.verdict in (Verdict.NO_ANSWER, Verdict.TRUNCATED):",
        "if grade is None:",
        SCALE,
    ),
    Mutant(
        "words of the same letters vote together",
        "verify/math/decide.py",
        "words)) or _LETTERS_ONLY.fullmatch(text):",
        "words)):",
        SCALE,
    ),
    Mutant(
        "export: the base's weights instead of the merged ones",
        "sharing/weights.py",
        "tuned.merge_and_unload()",
        "tuned.unload()",
        sharing("plain_libraries_give_the_same_greedy_tokens_in_a_fresh_process[merged float32]"),
    ),
    Mutant(
        "export: an adapter merged into weights of another precision",
        "sharing/weights.py",
        "load_model(base, settings.dtype,",
        'load_model(base, "float32",',
        sharing("merging_into_bfloat16_rounds_once_and_says_how_much"),
    ),
    Mutant(
        "export: a gain that is not shown is not called so",
        "sharing/card.md.j2",
        "not gain.low > 0",
        "not gain.high > -1",
        sharing("a_last_attempt_that_is_not_better_is_called_so"),
    ),
    Mutant(
        "a step played again is sent to a tracker again",
        "trackers/tracking.py",
        "r.step > sent.step:",
        "r.step > 0:",
        ("tests/test_trackers.py::test_steps_that_are_played_again_after_a_crash_are_not_sent_again",),
    ),
]


def pytest(source: Path, tests: tuple[str, ...]) -> tuple[int, str]:
    """Run tests against a copy of the source; exit code, and the name of the first failure or the last line."""
    environment = {**os.environ, "PYTHONPATH": str(source), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--tb=no", "-p", "no:cacheprovider", *tests]
    done = subprocess.run(command, check=False, cwd=ROOT, env=environment, capture_output=True, text=True)
    failed = re.search(r"^(?:FAILED|ERROR) \S+::(\S+)", done.stdout, re.M)
    return done.returncode, failed[1] if failed else (done.stdout + done.stderr).strip().rpartition("\n")[2]


def judge(mutant: Mutant, scratch: Path) -> tuple[bool, str]:
    """Whether a test noticed, and which."""
    source = scratch / "src"
    shutil.rmtree(source, ignore_errors=True)
    shutil.copytree(ROOT / "src", source, ignore=shutil.ignore_patterns("__pycache__"))
    file = source / "selfcorrect" / mutant.file
    text = file.read_text(encoding="utf-8")
    if text.count(mutant.old) != 1:
        return False, f"STALE: its text occurs {text.count(mutant.old)} times in {mutant.file}"
    file.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
    code, what = pytest(source, mutant.tests)
    return code == TESTS_FAILED, what if code == TESTS_FAILED else f"SURVIVED (pytest exit code {code}): {what}"


def main() -> int:
    wanted = sys.argv[1:]
    chosen = [m for m in MUTANTS if not wanted or any(w in m.name for w in wanted)]
    if not chosen:
        print(f"no mutant is named {' or '.join(wanted)}; there are: {', '.join(m.name for m in MUTANTS)}")
        return 1
    code, what = pytest(ROOT / "src", tuple(dict.fromkeys(t for m in chosen for t in m.tests)))
    if code != 0:
        print(f"the tests must be green before anything is broken: {what}")
        return 1
    survivors = 0
    with tempfile.TemporaryDirectory() as scratch:
        for mutant in chosen:
            start = time.perf_counter()
            noticed, what = judge(mutant, Path(scratch))
            survivors += not noticed
            print(
                f"{'red ' if noticed else 'GREEN'}  {mutant.name:<52} {time.perf_counter() - start:5.1f} s  {what}",
                flush=True,
            )
    print(f"{len(chosen) - survivors} of {len(chosen)} mutants were noticed")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
