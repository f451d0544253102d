"""Model names, files and configurations: what is wrong is said before weights load."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BartConfig,
    BertConfig,
    BltConfig,
    CpmAntConfig,
    Gemma3TextConfig,
    GemmaConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    MambaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3NextConfig,
    RwkvConfig,
    T5Config,
)

import tiny
from selfcorrect.config import load_config as load_settings
from selfcorrect.engines import models
from selfcorrect.engines.models import (
    ResolvedModel,
    check_attention,
    check_length,
    check_vocabulary,
    identity,
    load_config,
    load_model,
    load_tokenizer,
    model_directory,
    model_end_ids,
    resolve_model,
)
from selfcorrect.engines.quiet import quiet_peft
from selfcorrect.errors import ConfigError, ModelError
from selfcorrect.experiment import prepare
from tokenizers_in_process import chatml

SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 300,
}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A complete directory of a random model."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SMALL, attention_dropout=0.5))
    model.generation_config.update(do_sample=True, top_k=3, temperature=0.6)
    model.save_pretrained(tmp_path / "model")
    chatml().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


def rewrite_config(directory: Path, **changes: Any) -> None:
    file = directory / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_resolving_loads_no_model_library(saved: Path) -> None:
    code = (
        "import sys; from selfcorrect.engines.models import resolve_model;"
        f"resolve_model({str(saved)!r}); resolve_model('owner/name');"
        "print([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_resolve(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_model(str(saved)) == ResolvedModel(str(saved), "directory")
    assert resolve_model("owner/some-model_1.5") == ResolvedModel("owner/some-model_1.5", "hub")
    monkeypatch.chdir(tmp_path)
    assert resolve_model("model") == ResolvedModel("model", "directory")
    with pytest.raises(ModelError, match=r"does not exist"):
        resolve_model("model/step-7")  # its parent is here, so it is a path, not owner/name


def test_tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models.resources, "files", lambda package: tmp_path / package)
    with pytest.raises(ModelError, match=r"installation is incomplete; install"):
        resolve_model("tiny")
    directory = tmp_path / "selfcorrect" / "models" / "tiny"
    directory.mkdir(parents=True)
    (directory / "config.json").touch()
    assert resolve_model("tiny") == ResolvedModel(str(directory), "tiny")


@pytest.mark.parametrize("name", ["tinny", "./none", "/none/at/all", "~/none", "a/b/c", "", "../up", "owner/"])
def test_names_that_stand_for_nothing(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if name == "":
        name = "no model"
    with pytest.raises(ModelError, match=r"does not exist.*tiny, tiny-rare or smollm2, a directory .*owner/name"):
        resolve_model(name)


def test_directories_that_are_no_models(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=rf"no config.json.*perhaps {saved} is meant"):
        resolve_model(str(tmp_path))
    (tmp_path / "adapter").mkdir()
    with pytest.raises(ModelError, match=r"no config.json.*as save_pretrained writes it"):
        resolve_model(str(tmp_path / "adapter"))
    (tmp_path / "adapter" / "adapter_config.json").touch()
    with pytest.raises(ModelError, match=r"does not say which model it belongs to"):
        load_config(resolve_model(str(tmp_path / "adapter")))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (saved / name).unlink()
    with pytest.raises(ModelError, match=r"a model but no tokenizer"):
        resolve_model(str(saved))
    with pytest.raises(ModelError, match=r"is a file, not a directory"):
        resolve_model(str(saved / "config.json"))


def test_load(saved: Path) -> None:
    resolved = resolve_model(str(saved))
    model = load_model(resolved, "float32", "cpu")
    assert not model.training, "no dropout"
    assert model.config._attn_implementation == "sdpa"
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert load_model(resolved, torch.bfloat16, torch.device("cpu")).dtype == torch.bfloat16
    tokenizer = load_tokenizer(resolved)
    assert tokenizer.chat_template == chatml().chat_template
    check_vocabulary(model.config, tokenizer)
    with pytest.raises(ModelError, match=r"259 tokens but the model embeds 200"):
        check_vocabulary(LlamaConfig(**SMALL | {"vocab_size": 200}), tokenizer)


def test_ids_outside_the_embedding_are_refused_before_the_weights_load(saved: Path) -> None:
    with_gap = chatml()
    vocabulary = with_gap.get_vocab() | {"W": 300}
    with_gap.get_vocab = lambda: vocabulary
    with pytest.raises(ModelError, match=r"model embeds 300 \(the largest id is 300\).*own tokenizer"):
        check_vocabulary(LlamaConfig(**SMALL), with_gap)
    (saved / "generation_config.json").write_text('{"eos_token_id": [258, 300]}')
    with pytest.raises(ModelError, match=r"end id 300 is outside.* 300, .*correct eos_token_id in generation_config"):
        prepare(load_settings(None, [f"model={saved}", "play.max_new_tokens=40"]))


@pytest.mark.parametrize(
    ("generation", "config", "ids"),
    [
        ('{"eos_token_id": [7, 9]}', {}, (7, 9)),
        ('{"eos_token_id": 7, "num_return_sequences": 4, "do_sample": false}', {"eos_token_id": [9]}, (7,)),
        ('{"eos_token_id": [7, 9], "cache_implementation": "unknown"}', {}, (7, 9)),
        ('{"eos_token_id": null}', {"eos_token_id": [7, 9]}, (7, 9)),
        ('{"eos_token_id": "<|end|>"}', {"eos_token_id": [7, 9]}, (7, 9)),
        ("", {"eos_token_id": [7, 9]}, (7, 9)),
        ("[]", {"eos_token_id": 7}, (7,)),
        (None, {"text_config": {"eos_token_id": [7, 9]}}, (7, 9)),
        (None, {"eos_token_id": None}, ()),
        # the class has the default 2, which is the byte "#" of this tokenizer
        (None, {}, ()),
    ],
)
def test_end_ids_are_those_of_the_files(saved: Path, generation: str | None, config: Any, ids: tuple[int, ...]) -> None:
    file = saved / "generation_config.json"
    file.unlink() if generation is None else file.write_text(generation)
    raw = json.loads((saved / "config.json").read_text())
    raw.pop("eos_token_id", None)
    (saved / "config.json").write_text(json.dumps(raw | config))
    assert model_end_ids(resolve_model(str(saved))) == ids


def test_no_chat_template(saved: Path) -> None:
    (saved / "chat_template.jinja").unlink()
    with pytest.raises(ModelError, match=rf"{saved}.*has no chat template"):
        load_tokenizer(resolve_model(str(saved)))


def test_revision_of_a_directory(saved: Path) -> None:
    with pytest.raises(ConfigError, match=r"model.revision = 'main' would be ignored"):
        load_config(resolve_model(str(saved)), revision="main")


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("load", [load_config, load_tokenizer, lambda r: load_model(r, "float32", "cpu")])
def test_hub_out_of_reach(load: Any) -> None:
    with pytest.raises(
        ModelError, match=r"'owner/name' could not be loaded from the .*Hub.*network.*local copy.*model=tiny"
    ):
        load(resolve_model("owner/name"))


@pytest.mark.usefixtures("offline")
def test_a_hub_models_files_are_a_directory_of_the_local_cache(saved: Path, tmp_path: Path) -> None:
    commits = {"main": "1" * 40, "v1": "2" * 40}
    cache = tmp_path / "hub/models--owner--name"
    (cache / "refs").mkdir(parents=True)
    for name, commit in commits.items():
        (cache / "refs" / name).write_text(commit)
        shutil.copytree(saved, cache / "snapshots" / commit)
    model = resolve_model("owner/name")
    assert model_directory(model) == cache / "snapshots" / commits["main"]
    assert model_directory(model, revision="v1") == cache / "snapshots" / commits["v1"]
    with pytest.raises(ModelError, match=r"'owner/other' could not be loaded from the .*Hub.*local copy"):
        model_directory(resolve_model("owner/other"))


def test_remote_code_is_not_run_unasked(saved: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rewrite_config(saved, model_type="own", auto_map={"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"})
    (saved / "own.py").write_text("print('owned')")
    with pytest.raises(ModelError, match=r"only by running the code.*model.trust_remote_code=true"):
        load_config(resolve_model(str(saved)))
    assert "owned" not in capfd.readouterr().out


@pytest.mark.parametrize("config", [T5Config(), BartConfig(), BertConfig(architectures=["BertForMaskedLM"])])
def test_other_kinds_of_model(config: Any, saved: Path) -> None:
    config.save_pretrained(saved)
    with pytest.raises(ModelError, match=r"not a causal language model"):
        load_config(resolve_model(str(saved)))


def test_weights_without_a_language_model_head(saved: Path) -> None:
    LlamaModel(LlamaConfig(**SMALL)).save_pretrained(saved)
    resolved = resolve_model(str(saved))
    with pytest.raises(ModelError, match=r"not a causal language model \(LlamaModel\)"):
        load_config(resolved)
    rewrite_config(saved, architectures=["LlamaForCausalLM"])
    with pytest.raises(ModelError, match=r"lacks weights .*lm_head.weight.* start at random"):
        load_model(resolved, "float32", "cpu")


@pytest.mark.parametrize("damage", ["missing", "junk", "shapes"])
def test_damaged_weights(damage: str, saved: Path) -> None:
    weights = saved / "model.safetensors"
    if damage == "missing":
        weights.unlink()
    elif damage == "junk":
        weights.write_bytes(b"junk" * 10)
    else:
        rewrite_config(saved, hidden_size=32)
    with pytest.raises(ModelError, match=rf"{saved}' could not be loaded from its directory"):
        load_model(resolve_model(str(saved)), "float32", "cpu")


def cut(file: Path, n: int = 50) -> None:
    file.write_bytes(file.read_bytes()[:-n])


INDEX, SHARD, FIRST = (
    "model.safetensors.index.json",
    "model-00002-of-00003.safetensors",
    "model-00001-of-00003.safetensors",
)
DAMAGED = {
    "a shard missing": (lambda d: (d / SHARD).unlink(), SHARD),
    "a shard of zero bytes": (lambda d: (d / SHARD).write_bytes(b""), "header too small"),
    "a shard cut": (lambda d: cut(d / SHARD), "not fully covered"),
    "a pointer for a shard": (
        lambda d: (d / SHARD).write_text("version https://git-lfs.github.com/spec/v1\n"),
        "header",
    ),
    "one shard twice": (lambda d: shutil.copy(d / FIRST, d / SHARD), "lacks weights"),
    "an index cut": (lambda d: cut(d / INDEX), "could not be loaded"),
    "an index missing": (lambda d: (d / INDEX).unlink(), "no file named model.safetensors"),
    "an index of nothing": (lambda d: (d / INDEX).write_text('{"metadata": {}, "weight_map": null}'), "copy it again"),
    "an index that is a list": (lambda d: (d / INDEX).write_text("[]"), "copy it again"),
    "a tokenizer cut": (lambda d: cut(d / "tokenizer.json"), "copy it again"),
    "a tokenizer of an unknown kind": (
        lambda d: (d / "tokenizer.json").write_text(
            json.dumps(json.loads((d / "tokenizer.json").read_text()) | {"model": {"type": "New"}})
        ),
        "copy it again",
    ),
    "a tokenizer's settings": (lambda d: (d / "tokenizer_config.json").write_text("[]"), "copy it again"),
}


@pytest.fixture(scope="module")
def in_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("shards") / "model"
    LlamaForCausalLM(LlamaConfig(**SMALL)).save_pretrained(path, max_shard_size="22KB")
    chatml().save_pretrained(path)
    assert (path / SHARD).is_file()
    return path


@pytest.mark.parametrize("name", DAMAGED)
def test_damage_is_one_paragraph_with_a_way_out(name: str, in_shards: Path, tmp_path: Path) -> None:
    damage, words = DAMAGED[name]
    shutil.copytree(in_shards, tmp_path / "model")
    damage(tmp_path / "model")
    resolved = resolve_model(str(tmp_path / "model"))
    with pytest.raises(ModelError, match=words) as error:
        load_tokenizer(resolved)
        load_model(resolved, "float32", "cpu")
    assert str(tmp_path) in str(error.value) and re.search("; (give|take) ", str(error.value))


@pytest.mark.parametrize("content", [b"", b"junk" * 100, None])
def test_damaged_pickles_of_weights(content: bytes | None, saved: Path) -> None:
    (saved / "model.safetensors").unlink()
    if content is None:  # a class, which is not unpickled
        torch.save({"x": Path("a")}, saved / "pytorch_model.bin")
    else:
        (saved / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(ModelError, match="could not be loaded from its directory"):
        load_model(resolve_model(str(saved)), "float32", "cpu")


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``base`` and an adapter on it, next to each other."""
    there = tmp_path_factory.mktemp("adapter")
    base = LlamaForCausalLM(LlamaConfig(**SMALL))
    base.save_pretrained(there / "base")
    chatml().save_pretrained(there / "base")
    with quiet_peft():
        peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(there / "adapter")
    return there / "adapter"


@pytest.fixture
def copied(adapter: Path, tmp_path: Path) -> Path:
    shutil.copytree(adapter.parent, tmp_path / "there")
    return tmp_path / "there" / "adapter"


def based_on(name: object, directory: Path) -> None:
    file = directory / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": name}))


ADAPTER = "adapter_model.safetensors"


@pytest.mark.parametrize("name", ["../base", "ABSOLUTE"])
def test_the_base_of_an_adapter_is_found_from_everywhere(name: str, copied: Path, monkeypatch: Any) -> None:
    based_on(str(copied.parent / "base") if name == "ABSOLUTE" else name, copied)
    monkeypatch.chdir("/")
    resolved = resolve_model(str(copied))
    assert load_model(resolved, "float32", "cpu").config.hidden_size == SMALL["hidden_size"]
    assert load_tokenizer(resolved).get_vocab() == chatml().get_vocab()  # PEFT wrote none beside the adapter


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("base", "needs its base, but model 'base' does not exist.*write the whole path"),
        ("./base", "needs its base.*write the whole path"),
        ("/gone/base", "needs its base, but model '/gone/base' does not exist"),
        ("", "does not say which model"),
        (None, "does not say which model"),
        ("../adapter", "is an adapter too.*merge that one"),
    ],
)
def test_the_base_of_an_adapter_that_is_not_there(name: object, words: str, copied: Path, monkeypatch: Any) -> None:
    based_on(name, copied)
    monkeypatch.chdir("/")
    with pytest.raises(ModelError, match=words):
        load_config(resolve_model(str(copied)))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda d: (d / ADAPTER).unlink(), f"there is no {ADAPTER}"),
        (lambda d: (d / ADAPTER).write_bytes(b""), "header too small"),
        (lambda d: cut(d / ADAPTER, 20), "not fully covered"),
        (lambda d: save_file(dict(list(load_file(d / ADAPTER).items())[1:]), d / ADAPTER), "missing adapter keys"),
        (lambda d: save_file({}, d / ADAPTER), "missing adapter keys"),
    ],
)
def test_an_adapter_that_is_not_whole_is_refused(damage: Any, words: str, copied: Path) -> None:
    based_on("../base", copied)
    damage(copied)
    with pytest.raises(ModelError, match=f"{copied}.*{words}"):
        load_model(resolve_model(str(copied)), "float32", "cpu")


@pytest.mark.parametrize(
    "text", ["{broken", '{"model_type": "whatnot"}', "{}", '{"model_type": "llama", "hidden_size": "big"}']
)
def test_damaged_config(text: str, saved: Path) -> None:
    (saved / "config.json").write_text(text)
    with pytest.raises(ModelError, match=r"could not be loaded from its directory"):
        load_config(resolve_model(str(saved)))


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(),
        GemmaConfig(),
        Qwen2Config(sliding_window=8),  # use_sliding_window is False: nothing slides
        MistralConfig(sliding_window=None),
        MistralConfig(sliding_window=100),
        Gemma3TextConfig(sliding_window=100),
    ],
)
def test_attention_over_all_positions(config: Any) -> None:
    check_attention(config, max_length=100)


@pytest.mark.parametrize(
    "config",
    [
        MistralConfig(sliding_window=99),
        Gemma3TextConfig(sliding_window=99),
        Qwen2Config(sliding_window=99, use_sliding_window=True, max_window_layers=2),
    ],
)
def test_windows_too_short(config: Any) -> None:
    with pytest.raises(ModelError, match=r"last 99 tokens only .*fewer than the 100 positions.*play.max_new_tokens"):
        check_attention(config, max_length=100)


@pytest.mark.parametrize("config", [MambaConfig(), Qwen3NextConfig(), RwkvConfig()])
def test_recurrent_models(config: Any) -> None:
    with pytest.raises(ModelError, match=r"plain key-value cache cannot hold.*full attention"):
        check_attention(config, max_length=100)


@pytest.mark.parametrize(("config", "name"), [(BltConfig(), "num_hidden"), (CpmAntConfig(), "max_position")])
def test_a_configuration_without_the_numbers_that_sampling_needs(config: Any, name: str) -> None:
    with pytest.raises(ModelError, match=rf"does not say its {name}.*write it into config.json"):
        check_attention(config, max_length=100)


def test_length() -> None:
    config = LlamaConfig(max_position_embeddings=100)
    assert check_length(config, 10, lambda n: 10 * n) == 100
    with pytest.raises(ModelError, match=r"3 attempts may take 101 tokens.*only 100 positions, which hold 2;.*max_new"):
        check_length(config, 3, {1: 99, 2: 100, 3: 101}.__getitem__)
    with pytest.raises(ModelError, match="hold not even one"):
        check_length(config, 2, lambda n: 100 + n)


def test_another_model_in_the_same_place_is_noticed(tmp_path):
    place = tiny.save_model(tmp_path / "base")
    first = identity(resolve_model(str(place)))
    assert first == identity(resolve_model(str(place))) and first.startswith("directory ")
    weights = bytearray((place / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (place / "model.safetensors").write_bytes(weights)
    assert identity(resolve_model(str(place))) != first
    assert (identity(resolve_model("owner/name")), identity(resolve_model("tiny"))) == ("hub", "tiny")


def test_another_adapter_or_another_base_under_it_is_noticed(tmp_path):
    names = []
    for base in ("tiny", "tiny-rare"):
        for weights in (b"one", b"two"):
            (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
            (tmp_path / "adapter_model.safetensors").write_bytes(weights)
            names.append(identity(resolve_model(str(tmp_path))))
    assert len(set(names)) == 4
    assert all(re.fullmatch(r"adapter [0-9a-f]{16} of tiny", name) for name in names)
