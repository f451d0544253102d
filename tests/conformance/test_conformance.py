"""What every engine promises, on a model small enough to know the truth: plain transformers, PEFT and autograd.

    pytest tests/conformance --engine torch

Log-probs agree to 1e-4 nats in float32. Gradients are seen through what one optimiser step with a large Adam epsilon does
to the log-probs of held-out sequences: such a step is plain gradient descent, so direction and size both count.
"""

import asyncio

import numpy as np
import pytest
import torch
from kinds import ALPHA, RANK

import tiny
import toy
from selfcorrect.algorithm.sequences import lay_out, policy_gradient_data
from selfcorrect.algorithm.stages import plan
from selfcorrect.config import TorchEngineConfig, load_config
from selfcorrect.engines.base import CURRENT, AdamParams, SampleRequest, SamplingParams
from selfcorrect.engines.chat import ChatFormat
from selfcorrect.engines.quiet import quiet_peft
from selfcorrect.engines.torch_engine import TorchEngine
from selfcorrect.episodes.play import Play, play
from selfcorrect.errors import EngineError
from selfcorrect.types import Datum

END = tiny.tokenizer().eos_token_id
ENDS = frozenset({END, *range(5, 40)})
"""Many end tokens, so that answers of the random model end."""
PLAIN_STEP = AdamParams(learning_rate=100.0, eps=1e4)
"""Adam's first step is rate * g / (|g| + eps): here 0.01 * g."""
ATOL = 1e-4


def prompts(n, seed=0):
    rng = np.random.default_rng(seed)
    return [tuple(int(t) for t in rng.integers(5, 200, size=rng.integers(3, 12))) for _ in range(n)]


def requests(n=6, seed=0, name="conformance"):
    return [SampleRequest(p, (name, seed, i)) for i, p in enumerate(prompts(n, seed))]


def sample(engine, reqs, params=None):
    return asyncio.run(engine.sample(reqs, params or SamplingParams(12, 1.0, ENDS)))


def datum(prompt, answer, logprobs, weight):
    tokens = np.array([*prompt, *answer])
    on = np.arange(len(tokens)) >= len(prompt)
    lps = np.zeros(len(tokens))
    lps[on] = logprobs
    return Datum(tokens, np.where(on, weight, 0.0), lps, on)


def sampled_data(engine, n=6, seed=0, weight=lambda i: 0.1 * (i - 2.3)):
    reqs = requests(n, seed)
    answers = sample(engine, reqs)
    return [
        datum(r.prompt_ids, a.token_ids, a.logprobs, weight(i))
        for i, (r, a) in enumerate(zip(reqs, answers, strict=True))
    ]


def flat(arrays, data):
    return np.concatenate([a[d.sampled_T] for a, d in zip(arrays, data, strict=True)])


def current(engine, data):
    return flat(engine.logprobs(data, CURRENT), data)


def model_logprobs(model, d):
    """By the plain model, at sampled positions, with gradient; shape [sampled]."""
    logits = model(input_ids=torch.tensor(d.tokens_T)[None]).logits[0].float()
    picked = logits[:-1].log_softmax(-1).gather(1, torch.tensor(d.tokens_T[1:])[:, None])[:, 0]
    return picked[torch.tensor(d.sampled_T[1:])]


def truth(model, data):
    with torch.no_grad():
        return np.concatenate([model_logprobs(model, d).numpy() for d in data])


@pytest.fixture
def with_peft(tmp_path, kind):
    """The engine's policy as any user of the export would load it."""
    from peft import PeftModel

    def load(engine):
        engine.export(tmp_path / "export")
        with quiet_peft():
            return PeftModel.from_pretrained(kind.model(), tmp_path / "export", is_trainable=True)

    return load


def moved_by(engine, data, held_out, loss, adam=PLAIN_STEP):
    """Change of held-out log-probs by one step."""
    before = current(engine, held_out)
    engine.forward_backward(data, loss)
    engine.optim_step(adam)
    return current(engine, held_out) - before


def test_an_engine_says_what_it_is(engine):
    assert engine.info.name and engine.info.device and engine.info.max_length == 512
    assert engine.info.exact_sampler


def test_sampling_follows_the_models_law(engine, kind):
    prompt, n = prompts(1)[0], 800
    rows = [SampleRequest(prompt, ("law", i)) for i in range(n)]
    drawn = [s for i in range(0, n, 64) for s in sample(engine, rows[i : i + 64], SamplingParams(1, 1.0))]
    with torch.no_grad():
        law = kind.model()(torch.tensor([prompt])).logits[0, -1].softmax(-1).numpy()
    counts = np.bincount([s.token_ids[0] for s in drawn], minlength=len(law))
    # chi-square over tokens with at least 5 expected, the rest in one bin; 5 standard deviations of slack
    common = law * n >= 5
    observed = np.append(counts[common], counts[~common].sum())
    expected = np.append(law[common] * n, law[~common].sum() * n)
    freedom = len(observed) - 1
    assert ((observed - expected) ** 2 / expected).sum() < freedom + 5 * np.sqrt(2 * freedom)
    for s in drawn:
        assert s.logprobs[0] == pytest.approx(np.log(law[s.token_ids[0]]), abs=ATOL)


def test_equal_keys_give_equal_tokens_whatever_is_beside_them(engine):
    together = sample(engine, requests())
    assert [s.token_ids for s in sample(engine, requests()[::-1])][::-1] == [s.token_ids for s in together]
    assert sample(engine, requests()[2:3])[0].token_ids == together[2].token_ids
    others = [SampleRequest(r.prompt_ids, ("other", i)) for i, r in enumerate(requests())]
    assert [s.token_ids for s in sample(engine, others)] != [s.token_ids for s in together]


def test_sampler_trainer_and_the_plain_model_agree(engine, kind):
    data = sampled_data(engine)
    plain = truth(kind.model(), data)
    np.testing.assert_allclose(flat([d.logprobs_T for d in data], data), plain, atol=ATOL)
    np.testing.assert_allclose(current(engine, data), plain, atol=ATOL)
    np.testing.assert_allclose(flat(engine.logprobs(data, "start"), data), plain, atol=ATOL)
    assert all((lp[~d.sampled_T] == 0).all() for lp, d in zip(engine.logprobs(data, CURRENT), data, strict=True))


def test_answers_end_with_their_end_token_or_at_the_cap(engine):
    answers = sample(engine, requests(12))
    assert {s.stop for s in answers} == {"end", "length"}
    for s in answers:
        assert len(s.logprobs) == len(s.token_ids) <= 12
        assert (s.token_ids[-1] in ENDS) == (s.stop == "end")
        assert not set(s.token_ids[:-1]) & ENDS


def test_temperature_0_takes_the_mode_with_its_log_prob_at_temperature_1(engine, kind):
    for r, s in zip(requests(3), sample(engine, requests(3), SamplingParams(1, 0.0)), strict=True):
        with torch.no_grad():
            law = kind.model()(torch.tensor([r.prompt_ids])).logits[0, -1].log_softmax(-1)
        assert s.token_ids == (int(law.argmax()),)
        assert s.logprobs[0] == pytest.approx(float(law.max()), abs=ATOL)


@pytest.mark.parametrize("loss", ["importance_sampling", "cross_entropy"])
def test_a_step_is_that_of_the_summed_loss(engine, with_peft, loss):
    data = sampled_data(engine)  # unequal lengths, weights of both signs
    if loss == "importance_sampling":  # off policy: ratios from 1/2 to 2
        shifts = np.log(np.linspace(0.5, 2, len(data)))
        data = [
            Datum(d.tokens_T, d.weights_T, np.where(d.sampled_T, d.logprobs_T - s, 0), d.sampled_T)
            for d, s in zip(data, shifts, strict=True)
        ]
    held_out = sampled_data(engine, seed=1)
    peft = with_peft(engine)
    before = truth(peft, held_out)
    total = torch.zeros(())
    for d in data:
        lp, on = model_logprobs(peft, d), d.sampled_T
        weights = torch.tensor(d.weights_T[on], dtype=torch.float32)
        ratio = (lp - torch.tensor(d.logprobs_T[on], dtype=torch.float32)).exp()
        total = total - ((ratio if loss == "importance_sampling" else lp) * weights).sum()
    total.backward()
    with torch.no_grad():
        for p in peft.parameters():
            if p.grad is not None:
                p.sub_(PLAIN_STEP.learning_rate * p.grad / (p.grad.abs() + PLAIN_STEP.eps))
    expected = truth(peft, held_out) - before
    got = moved_by(engine, data, held_out, loss)
    assert np.abs(expected).max() > 0.01, "the step is too small to tell anything"
    assert np.corrcoef(got, expected)[0, 1] > 0.999
    np.testing.assert_allclose(np.abs(got).sum(), np.abs(expected).sum(), rtol=0.01)


@pytest.mark.parametrize("stage", [0, 1], ids=["stage 1", "stage 2"])
def test_a_score_step_is_that_of_the_torch_engine_from_the_same_adapter(engine, kind, tmp_path, stage):
    """The same episodes, on a policy that has left the base: token weights, log-probs, and what one step moves."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    data = sampled_data(engine)
    moved_by(engine, data, data, "cross_entropy", AdamParams(0.01))
    engine.reset_optimiser()  # the peer has no moments either
    engine.publish()
    engine.export(tmp_path / "export")
    peer = TorchEngine(kind.model(), ChatFormat(tiny.tokenizer()), TorchEngineConfig(device="cpu"), (RANK, ALPHA))
    peer.snapshot("start")  # a fresh adapter is the plain model, whatever its random half
    missing = set_peft_model_state_dict(peer._model, load_file(tmp_path / "export/adapter_model.safetensors"))
    assert not missing.unexpected_keys

    task = toy.Toy()
    how = Play(2, 4, 8, 1.0, ("score", stage))
    groups = asyncio.run(play(engine, task, task.problems("train")[:6], how))
    credit = plan(load_config(None, ["method=score"]))[stage].objective
    steps = []
    for one in (engine, peer):
        layout = lay_out(groups)
        reference = layout.by_attempt(one.logprobs(layout.sequences, "start"))
        made, report = policy_gradient_data(layout, reference, credit)
        assert min(report.kl_K) > 0.01, "the policy has not left the base: the anchor of Stage I weighs nothing"
        held_out = sampled_data(engine, seed=1) if one is engine else steps[0][2]
        before = current(one, held_out)
        trained = one.forward_backward(made, "importance_sampling")
        one.optim_step(PLAIN_STEP)
        steps.append((made, trained, held_out, current(one, held_out) - before))
    (made, trained, held_out, moved), (expected, expected_trained, _, expected_moved) = steps
    for a, b in zip(made, expected, strict=True):
        np.testing.assert_array_equal(a.tokens_T, b.tokens_T)
        np.testing.assert_allclose(a.weights_T, b.weights_T, atol=ATOL)
    np.testing.assert_allclose(np.concatenate(trained), np.concatenate(expected_trained), atol=ATOL)
    assert np.abs(expected_moved).max() > 0.01, "the step is too small to tell anything"
    assert np.corrcoef(moved, expected_moved)[0, 1] > 0.999
    np.testing.assert_allclose(np.abs(moved).sum(), np.abs(expected_moved).sum(), rtol=0.01)


def test_training_logprobs_come_back_at_weighted_positions_only(engine):
    data = sampled_data(engine)
    data[1] = Datum(data[1].tokens_T, np.zeros(len(data[1].tokens_T)), data[1].logprobs_T, data[1].sampled_T)
    for loss in ("importance_sampling", "cross_entropy"):
        for d, lp in zip(data, engine.forward_backward(data, loss), strict=True):
            np.testing.assert_array_equal(~np.isnan(lp), d.weights_T != 0)
            np.testing.assert_allclose(lp[d.weights_T != 0], d.logprobs_T[d.weights_T != 0], atol=ATOL)
        engine.optim_step(AdamParams(0.0))


def test_a_position_of_weight_0_counts_for_nothing_even_where_its_ratio_overflows(engine):
    data, held_out = sampled_data(engine), sampled_data(engine, seed=1)

    def tail_only(absurd):
        out = []
        for d in data:
            last = np.arange(len(d.tokens_T)) == len(d.tokens_T) - 1
            lps = np.where(last, d.logprobs_T, -1e30 if absurd else d.logprobs_T) * d.sampled_T
            out.append(Datum(d.tokens_T, last * 1.0, lps, d.sampled_T))
        return out

    with_absurd = moved_by(engine, tail_only(True), held_out, "importance_sampling")
    engine.restore("start")
    np.testing.assert_allclose(
        with_absurd, moved_by(engine, tail_only(False), held_out, "importance_sampling"), atol=ATOL
    )
    assert np.abs(with_absurd).max() > 0.001


def test_gradients_add_up_until_the_step_or_a_second_pass_is_refused(engine):
    data, held_out = sampled_data(engine), sampled_data(engine, seed=1)
    whole = moved_by(engine, data, held_out, "cross_entropy")
    engine.restore("start")
    before = current(engine, held_out)
    engine.forward_backward(data[:3], "cross_entropy")
    try:
        engine.forward_backward(data[3:], "cross_entropy")
    except EngineError as refused:
        assert refused.usable and "second forward_backward" in str(refused)
        engine.optim_step(AdamParams(0.0))
        return
    engine.optim_step(PLAIN_STEP)
    np.testing.assert_allclose(current(engine, held_out) - before, whole, atol=ATOL)


def test_a_step_without_a_gradient_moves_nothing(engine):
    data = sampled_data(engine)
    moved_by(engine, data, data, "cross_entropy", AdamParams(0.01))  # leaves momentum behind
    before = current(engine, data)
    assert engine.optim_step(AdamParams(0.01)).grad_norm == 0
    np.testing.assert_allclose(current(engine, data), before, atol=1e-6)


def test_a_snapshot_never_moves_and_starts_at_a_kl_of_0(engine):
    data = sampled_data(engine)
    moved_by(engine, data, data, "cross_entropy", AdamParams(0.01))
    engine.snapshot("middle")
    before = flat(engine.logprobs(data, "middle"), data)
    np.testing.assert_array_equal(before, current(engine, data))
    moved = moved_by(engine, data, data, "cross_entropy", AdamParams(0.01))
    np.testing.assert_array_equal(flat(engine.logprobs(data, "middle"), data), before)
    assert np.abs(moved).max() > 0.01
    with pytest.raises(EngineError) as caught:
        engine.logprobs(data, "nobody")
    assert caught.value.usable


def test_restore_is_the_snapshot_with_a_fresh_optimiser_and_wants_to_be_published(engine):
    data = sampled_data(engine)
    first = moved_by(engine, data, data, "cross_entropy", AdamParams(0.01))
    engine.restore("start")
    with pytest.raises(EngineError, match="publish"):
        sample(engine, requests())
    engine.publish()
    np.testing.assert_allclose(moved_by(engine, data, data, "cross_entropy", AdamParams(0.01)), first, atol=1e-5)


def test_reset_optimiser_forgets_the_moments_and_keeps_the_weights(engine):
    data = sampled_data(engine)
    other = [Datum(d.tokens_T, -d.weights_T, d.logprobs_T, d.sampled_T) for d in data]
    moved_by(engine, data, data, "cross_entropy", AdamParams(0.01))
    engine.snapshot("middle")
    with_moments = moved_by(engine, other, data, "cross_entropy", AdamParams(0.01))
    engine.restore("middle")
    fresh = moved_by(engine, other, data, "cross_entropy", AdamParams(0.01))
    assert np.abs(with_moments - fresh).max() > 0.01
    engine.restore("start")
    moved_by(engine, data, data, "cross_entropy", AdamParams(0.01))
    engine.publish()
    answers = sample(engine, requests())
    engine.reset_optimiser()
    assert [s.token_ids for s in sample(engine, requests())] == [s.token_ids for s in answers]  # still published
    np.testing.assert_allclose(moved_by(engine, other, data, "cross_entropy", AdamParams(0.01)), fresh, atol=1e-4)


def test_save_and_load_go_on_where_they_were(engine, kind, tmp_path):
    data = sampled_data(engine)

    def steps():
        return [moved_by(engine, data, data, "cross_entropy", AdamParams(0.01)) for _ in range(2)]

    steps()
    engine.save(tmp_path / "state")
    saved = current(engine, data)
    straight = steps()
    engine.load(tmp_path / "state")
    np.testing.assert_allclose(current(engine, data), saved, atol=1e-6)
    answers = sample(engine, requests())  # a loaded state is published
    again = [datum(r.prompt_ids, a.token_ids, a.logprobs, 1.0) for r, a in zip(requests(), answers, strict=True)]
    np.testing.assert_allclose(current(engine, again), flat([d.logprobs_T for d in again], again), atol=ATOL)
    np.testing.assert_allclose(flat(engine.logprobs(data, "start"), data), truth(kind.model(), data), atol=ATOL)
    np.testing.assert_allclose(np.concatenate(steps()), np.concatenate(straight), atol=1e-5)


def test_samples_are_those_of_the_published_weights(engine):
    data = sampled_data(engine)
    before = [s.token_ids for s in sample(engine, requests())]
    moved_by(engine, data, data, "cross_entropy", AdamParams(0.02))
    with pytest.raises(EngineError, match="publish") as caught:
        sample(engine, requests())
    assert caught.value.usable
    engine.publish()
    moved = sampled_data(engine)
    assert [d.tokens_T.tolist() for d in moved] != [d.tokens_T.tolist() for d in data]
    np.testing.assert_allclose(flat([d.logprobs_T for d in moved], moved), current(engine, moved), atol=ATOL)
    engine.restore("start")
    engine.publish()
    assert [s.token_ids for s in sample(engine, requests())] == before


def test_an_export_is_the_policy_for_plain_peft(engine, with_peft):
    data = sampled_data(engine)
    moved = moved_by(engine, data, data, "cross_entropy", AdamParams(0.01))
    assert np.abs(moved).max() > 0.01
    engine.publish()
    peft = with_peft(engine)
    assert {m.r["default"] for m in peft.modules() if hasattr(m, "r")} == {RANK}
    np.testing.assert_allclose(truth(peft, data), current(engine, data), atol=ATOL)


def test_a_request_that_makes_no_sense_is_refused_and_harms_nothing(engine):
    data = sampled_data(engine)
    bad = Datum(np.array([1, 10**6]), np.array([0.0, 1.0]), np.zeros(2), np.array([False, True]))
    for verb in (
        lambda: engine.forward_backward([*data, bad], "cross_entropy"),
        lambda: engine.logprobs([bad], CURRENT),
        lambda: sample(engine, [SampleRequest((10**6,), ("bad",))]),
    ):
        with pytest.raises(EngineError) as caught:
            verb()
        assert caught.value.usable
    before = current(engine, data)
    engine.optim_step(AdamParams(0.01))  # no half of a batch was kept
    np.testing.assert_allclose(current(engine, data), before, atol=1e-6)
    engine.publish()
    assert len(sample(engine, requests())) == 6
