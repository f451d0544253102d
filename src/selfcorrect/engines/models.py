"""Finding, checking and loading models. Importing this module, and ``resolve_model``, load no model library.

This order finds every fault before it costs time:

    resolved = resolve_model(name)                       # files and packages only
    config = load_config(resolved)                       # check_attention, check_length
    chat = load_chat(resolved, settings)                 # check_vocabulary
    model = load_model(resolved, dtype="float32", device="cpu")
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import warnings
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from selfcorrect.config import SHIPPED
from selfcorrect.engines.chat import ChatFormat, Rendering, require_chat_template
from selfcorrect.engines.quiet import quiet_peft, quiet_progress
from selfcorrect.engines.smollm2 import smollm2_cache, smollm2_directory, smollm2_gguf
from selfcorrect.errors import ConfigError, ModelError, SelfCorrectError

if TYPE_CHECKING:
    import torch

    from selfcorrect.config import Config

Kind = Literal["tiny", "smollm2", "directory", "adapter", "hub"]

EMBEDDED = (*SHIPPED, "smollm2")
ALIBI = frozenset({"bloom", "mpt"})
"""Model types whose attention always has a bias by distance, which the sampler's mask cannot express."""
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")
_ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


@dataclass(frozen=True)
class ResolvedModel:
    path_or_id: str
    """A directory, or a Hub id. The directory of ``smollm2`` is written at its first load; one of kind ``adapter`` holds a
    PEFT adapter, which can be measured but not trained further."""
    kind: Kind


def resolve_model(name: str) -> ResolvedModel:
    """Find out what a model name refers to, from files and installed packages only.

    An embedded name takes precedence over a directory of that name (write ``./tiny`` for the directory), and a directory
    over a Hub id. This does not check whether a Hub id exists.

    Raises:
        ModelError: the name refers to nothing, or files are missing.
    """
    if name in SHIPPED:
        tiny = Path(str(resources.files("selfcorrect").joinpath(f"models/{name}")))
        if not (tiny / "config.json").is_file():
            raise ModelError(
                f"the embedded model {name!r} is not at {tiny}: the installation is incomplete; install selfcorrect again"
            )
        return ResolvedModel(str(tiny), "tiny")
    if name == "smollm2":
        if not smollm2_cache().is_dir():
            smollm2_gguf()
        return ResolvedModel(str(smollm2_cache()), "smollm2")
    path = Path(name).expanduser()
    if (path / "adapter_config.json").is_file():
        return ResolvedModel(str(path), "adapter")
    if path.is_dir():
        _require_files(path)
        return ResolvedModel(str(path), "directory")
    if _HUB_ID.fullmatch(name) and not (path.parent.is_dir() or path.exists()):
        return ResolvedModel(name, "hub")
    found = "is a file, not a directory" if path.exists() else "does not exist"
    raise ModelError(
        f"model {name!r} {found}, and is no embedded model either; give {', '.join(SHIPPED)} or smollm2, a directory with "
        "config.json and the tokenizer's files, or a Hugging Face id of the form owner/name"
    )


def identity(resolved: ResolvedModel) -> str:
    """What a model name stands for: ``hub``, or the kind and a hash of the files, so that another model in the same place is
    noticed. The hash covers sizes, and the first MiB of every file, which has the names and shapes of the weights. An
    adapter is named with its base.

    Raises:
        ModelError: the base of an adapter is not there.
    """
    if resolved.kind not in ("directory", "adapter"):
        return resolved.kind
    found = hashlib.sha256()
    for path in sorted(p for p in Path(resolved.path_or_id).iterdir() if p.suffix in (".json", ".safetensors", ".bin")):
        with path.open("rb") as file:
            found.update(f"{path.name} {path.stat().st_size}\n".encode() + file.read(1 << 20))
    whole = f"{resolved.kind} {found.hexdigest()[:16]}"
    return whole if resolved.kind == "directory" else f"{whole} of {identity(base_of(resolved))}"


def base_of(resolved: ResolvedModel) -> ResolvedModel:
    """The whole model under a PEFT adapter; any other model is its own base.

    Raises:
        ModelError: the adapter does not say, or its base is not there.
    """
    if resolved.kind != "adapter":
        return resolved
    try:
        name = json.loads((Path(resolved.path_or_id) / "adapter_config.json").read_text())["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError):
        name = None
    if not isinstance(name, str) or not name:
        raise ModelError(
            f"the adapter in {resolved.path_or_id} does not say which model it belongs to (base_model_name_or_path in "
            "adapter_config.json); write the name or directory of that model there"
        )
    beside = Path(resolved.path_or_id) / name
    try:
        # a path that another program wrote may count from its own working directory or from the adapter
        base = resolve_model(str(beside) if not Path(name).is_dir() and beside.is_dir() else name)
    except ModelError as error:
        fault = str(error).partition("; ")[0]
        raise ModelError(
            f"the adapter in {resolved.path_or_id} needs its base, but {fault}; write the whole path of the base into "
            "base_model_name_or_path of adapter_config.json"
        ) from None
    if base.kind == "adapter":
        raise ModelError(
            f"the base of the adapter in {resolved.path_or_id} is an adapter too ({name}), and only one is loaded; merge that one "
            "into its base, and name the result in base_model_name_or_path of adapter_config.json"
        )
    return base


def load_adapter(base: Any, directory: str) -> Any:
    """The base with an adapter on it, as a ``PeftModel``.

    Raises:
        ModelError: the adapter is not whole. PEFT itself takes weights that are missing as zero, and looks on the Hub for a
            file that is not in the directory.
    """
    from peft import PeftModel

    with _explained(ResolvedModel(directory, "adapter")), quiet_progress(), quiet_peft(), warnings.catch_warnings():
        if not any((Path(directory) / name).is_file() for name in _ADAPTER_FILES):
            raise OSError(f"there is no {_ADAPTER_FILES[0]}")
        warnings.filterwarnings("error", message="Found missing adapter keys")
        return PeftModel.from_pretrained(base, directory)


def load_config(resolved: ResolvedModel, revision: str | None = None, trust_remote_code: bool = False) -> Any:
    """The model's configuration, checked to be one of a causal language model. Loads no weights.

    Raises:
        ModelError: no such model, not a causal language model, or its own code would have to run.
        ConfigError: a revision for something that is not on the Hub.
    """
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    resolved = base_of(resolved)
    with _explained(resolved):
        config = AutoConfig.from_pretrained(**_source(resolved, revision), trust_remote_code=trust_remote_code)
    if trust_remote_code and "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {}):
        return config
    known: set[str] = set()
    for names in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values():
        known.update([names] if isinstance(names, str) else names)
    declared = config.architectures or []
    if _causal_class(config) is None or config.is_encoder_decoder or (declared and known.isdisjoint(declared)):
        what = ", ".join(declared) or f"model type {config.model_type}"
        raise ModelError(
            f"model {resolved.path_or_id!r} is not a causal language model ({what}), and only those can be sampled "
            "from and trained here; take one whose config.json names a ...ForCausalLM architecture"
        )
    return config


def load_tokenizer(resolved: ResolvedModel, revision: str | None = None, trust_remote_code: bool = False) -> Any:
    """The model's tokenizer, with a chat template; that of its base for an adapter without one. Reads the configuration first, whose errors come sooner and are clearer.

    Raises:
        ModelError: as ``load_config``, its tokenizer cannot be read, or it has no chat template.
        ConfigError: a revision for something that is not on the Hub.
    """
    from transformers import AutoTokenizer

    config = load_config(resolved, revision, trust_remote_code)
    if resolved.kind == "adapter" and not (Path(resolved.path_or_id) / "tokenizer_config.json").is_file():
        resolved = base_of(resolved)  # PEFT's own save_pretrained writes no tokenizer
    with _explained(resolved):
        tokenizer = AutoTokenizer.from_pretrained(
            config=config, **_source(resolved, revision), trust_remote_code=trust_remote_code
        )
    require_chat_template(tokenizer, resolved.path_or_id)
    return tokenizer


def load_chat(resolved: ResolvedModel, config: Config) -> ChatFormat:
    """The model's chat format, under the settings ``model.*`` and ``task.shown_as``. Loads no weights.

    Raises:
        ModelError: as ``load_tokenizer`` and ``ChatFormat``.
        ConfigError: a setting would be ignored.
    """
    model = config.model
    tokenizer = load_tokenizer(resolved, model.revision, model.trust_remote_code)
    rendering = Rendering(model.history, model.template_kwargs, model.think_markers, config.task.shown_as)
    return ChatFormat(tokenizer, model_end_ids(resolved, model.revision), rendering)


def model_end_ids(resolved: ResolvedModel, revision: str | None = None) -> tuple[int, ...]:
    """The end ids that the files of a model name: those of its generation config; of its configuration where it has none.

    In some families (GLM-4) nothing else says that the next role's token ends an answer. The files are read as they are:
    the class of a configuration has a default (2 for Llama), which may be an ordinary token of this model, and the class
    of generation configs refuses whole files for settings of sampling, which are of no interest here.

    Raises:
        ModelError: the adapter has no base.
        ConfigError: a revision for something that is not on the Hub.
    """
    from transformers.utils import CONFIG_NAME, GENERATION_CONFIG_NAME, cached_file

    source = _source(base_of(resolved), revision)
    where = source.pop("pretrained_model_name_or_path")
    for name in (GENERATION_CONFIG_NAME, CONFIG_NAME):
        try:
            raw = json.loads(Path(cached_file(where, name, **source)).read_text())
        except (OSError, ValueError, TypeError):  # there is none, or it is broken
            continue
        sections = (raw, raw.get("text_config")) if isinstance(raw, dict) else ()
        for section in sections:
            found = section.get("eos_token_id") if isinstance(section, dict) else None
            ids = found if isinstance(found, list) else [found]
            if known := tuple(i for i in ids if isinstance(i, int) and not isinstance(i, bool) and i >= 0):
                return known
    return ()


def load_model(
    resolved: ResolvedModel,
    dtype: torch.dtype | str,
    device: torch.device | str,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Any:
    """The causal language model, in eval mode as transformers returns it (no dropout), with PyTorch's SDPA attention.

    Args:
        resolved: from ``resolve_model``.
        dtype: ``float32``, ``bfloat16`` or the torch dtype.
        device: where the weights go.
        revision: branch, tag or commit on the Hub.
        trust_remote_code: run the Python code that comes with the model.

    Raises:
        ModelError: as ``load_config``, or weights are missing, broken or too large for the device.
        ConfigError: a revision for something that is not on the Hub.
    """
    from transformers import AutoModelForCausalLM

    if resolved.kind == "adapter":
        base = load_model(base_of(resolved), dtype, device, revision, trust_remote_code)
        # in float32 next to the base's weights: merged into bfloat16 weights it would be rounded away
        return load_adapter(base, resolved.path_or_id).eval().get_base_model()
    config = load_config(resolved, revision, trust_remote_code)
    with _explained(resolved), quiet_progress():
        model, info = AutoModelForCausalLM.from_pretrained(
            config=config,
            dtype=dtype,
            attn_implementation="sdpa",
            output_loading_info=True,
            trust_remote_code=trust_remote_code,
            **_source(resolved, revision),
        )
        missing = sorted(info["missing_keys"])
        if missing:
            raise ModelError(
                f"model {resolved.path_or_id!r} lacks weights ({len(missing)} tensors, for example {missing[0]}): "
                "they would start at random; take a complete checkpoint of a causal language model"
            )
        model = model.to(device)
        # Copy the weights out of the memory-mapped file. There their alignment, and with it the last bits of matrix
        # products, depends on the length of the file's header, and changing the file changes the model.
        for tensor in model.parameters():
            tensor.data = tensor.data.clone()
        return model


def model_directory(resolved: ResolvedModel, revision: str | None = None) -> Path:
    """The directory of a model that has been loaded; of an adapter, that of its base. Uses no network.

    Raises:
        ModelError: it is not in the local cache.
    """
    resolved = base_of(resolved)
    if resolved.kind != "hub":
        return Path(_source(resolved, None)["pretrained_model_name_or_path"])
    from huggingface_hub import snapshot_download

    with _explained(resolved):
        return Path(snapshot_download(resolved.path_or_id, revision=revision, local_files_only=True))


def save_generation_config(chat: ChatFormat, path: Path) -> None:
    """Write the generation config of an exported model: greedy, its end and padding ids, and none of the base's settings.

    Some models set a temperature or a repetition penalty, with which the exported model would not answer as measured.
    """
    from transformers import GenerationConfig

    ends = sorted(chat.end_ids)
    config = GenerationConfig(eos_token_id=ends if len(ends) > 1 else ends[0], pad_token_id=chat.pad_id)
    config.save_pretrained(path)


def check_attention(config: Any, max_length: int) -> None:
    """Refuse a model that needs more than a plain key-value cache over all earlier tokens.

    Args:
        config: from ``load_config``.
        max_length: the most positions a sequence may take. A window at least this long never cuts anything off.

    Raises:
        ModelError: recurrent, hybrid or sparse attention, positions that enter attention as a bias (alibi), a window or
            a range of positions shorter than ``max_length``, or no number of layers or positions.
    """
    text = config.get_text_config(decoder=True)
    biased = getattr(text, "alibi", False) or getattr(text, "position_embedding_type", None) == "alibi"
    if biased or config.model_type in ALIBI:
        raise _not_plain(f"a bias by distance (alibi; model type {config.model_type})")
    limit = steady_length(config)
    if limit is not None and limit < max_length:
        raise ModelError(
            f"the model changes its rotary positions for sequences beyond {limit} tokens (longrope), for a whole batch at once, "
            f"and an episode may take {max_length}: tokens would depend on other rows, and log-probs would be wrong; "
            "lower play.max_new_tokens or play.attempts, or take a model with fixed positions"
        )
    # kind and window of every layer, as transformers' own cache reads them from a configuration
    sliding = getattr(text, "sliding_window", None)
    if getattr(text, "use_sliding_window", True) is False:
        sliding = None
    chunk = getattr(text, "attention_chunk_size", None)
    kinds = getattr(text, "layer_types", None)
    if kinds is None:
        kinds = ["sliding_attention" if sliding else "chunked_attention" if chunk else "full_attention"]
    for kind in kinds:
        window = chunk if kind == "chunked_attention" else sliding
        if kind in ("sliding_attention", "chunked_attention"):
            if window is None or window < max_length:
                raise ModelError(
                    f"the model attends to the last {window} tokens only ({kind}), fewer than the {max_length} "
                    "positions of an episode, and windowed key-value caches are not supported; lower "
                    "play.max_new_tokens or play.attempts, or take a model with full attention"
                )
        elif kind != "full_attention":
            raise _not_plain(f"layers of type {kind}")
    if getattr(_causal_class(config), "_is_stateful", False):
        raise _not_plain(f"a recurrent state (model type {config.model_type})")
    for name in ("num_hidden_layers", "max_position_embeddings"):
        if getattr(text, name, None) is None:
            raise ModelError(
                f"the configuration of the model does not say its {name} (model type {config.model_type}), which sampling needs; "
                "write it into config.json if the model has one stack of layers with full attention, or take another model"
            )


def steady_length(config: Any) -> int | None:
    """The longest sequence up to which a model's rotary positions do not depend on the length; None if they never do.

    longrope (once "su") has one set of frequencies up to ``original_max_position_embeddings`` and another beyond it.
    transformers picks one by the longest row of a batch.
    """
    text = config.get_text_config(decoder=True)
    # the second is the older name, which configurations that come with their own code still use
    ropes = [r for key in ("rope_parameters", "rope_scaling") if isinstance(r := getattr(text, key, None), dict)]
    kinds = [*ropes, *(value for rope in ropes for value in rope.values() if isinstance(value, dict))]
    limits = [
        int(kind.get("original_max_position_embeddings") or getattr(text, "original_max_position_embeddings", 0) or 0)
        for kind in kinds
        if kind.get("rope_type", kind.get("type")) in ("longrope", "su")
    ]
    return min(limits) if limits else None


def check_length(config: Any, attempts: int, longest: Callable[[int], int]) -> int:
    """Refuse a model too short for prompt + attempts x cap + bridges.

    Args:
        config: of the model.
        attempts: number of attempts in an episode.
        longest: tokens of the longest episode with a given number of attempts.

    Returns:
        ``longest(attempts)``.

    Raises:
        ModelError: ``max_position_embeddings`` is below it; the message says how many attempts would fit.
    """
    needed = longest(attempts)
    limit = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)
    if limit is not None and limit < needed:
        fitting = next((n for n in range(attempts - 1, 0, -1) if longest(n) <= limit), 0)
        raise ModelError(
            f"an episode of {attempts} attempts may take {needed} tokens (prompt, attempts at their cap, instructions), but the "
            f"model has only {limit} positions, which hold {fitting or 'not even one'}; lower play.max_new_tokens or the number "
            "of attempts, or take a model with a longer context"
        )
    return needed


def check_vocabulary(config: Any, tokenizer: Any, end_ids: Collection[int] = ()) -> None:
    """Refuse a tokenizer that knows ids for which the model has no embedding, and end ids that cannot be sampled.

    Raises:
        ModelError: the tokenizer is larger than the model's vocabulary, or an end id is outside of it.
    """
    size = config.get_text_config(decoder=True).vocab_size
    largest = max(tokenizer.get_vocab().values(), default=0)
    if len(tokenizer) > size or largest >= size:
        raise ModelError(
            f"the tokenizer has {len(tokenizer)} tokens but the model embeds {size} (the largest id is {largest}): the two do "
            "not belong together, or tokens were added without resizing the model; use the model's own tokenizer"
        )
    outside = sorted(i for i in end_ids if i >= size)
    if outside:
        raise ModelError(
            f"the end id {outside[0]} is outside the model's vocabulary of {size}, so it can never be sampled; correct "
            "eos_token_id in generation_config.json (in config.json if there is none) of the model's directory"
        )


def _require_files(path: Path) -> None:
    if (path / "config.json").is_file():
        if any((path / name).is_file() for name in _TOKENIZER_FILES):
            return
        raise ModelError(
            f"directory {path} holds a model but no tokenizer ({', '.join(_TOKENIZER_FILES)}); copy the tokenizer's "
            "files of the model into it"
        )
    inside = sorted(p.parent.name for p in path.glob("*/config.json"))
    hint = f"perhaps {path / inside[0]} is meant" if inside else "give a directory as save_pretrained writes it"
    raise ModelError(f"directory {path} holds no config.json, so it is not a model; {hint}")


def _source(resolved: ResolvedModel, revision: str | None) -> dict[str, Any]:
    """Where ``from_pretrained`` finds the model."""
    if revision is not None and resolved.kind != "hub":
        raise ConfigError(
            f"model.revision = {revision!r} would be ignored: {resolved.path_or_id} is not on the Hub; drop the setting"
        )
    location = str(smollm2_directory()) if resolved.kind == "smollm2" else resolved.path_or_id
    if resolved.kind != "hub":
        location = str(Path(location).resolve())  # an adapter records it, and is loaded from other directories too
    options: dict[str, Any] = {"local_files_only": True} if resolved.kind != "hub" else {}
    if revision is not None:
        options["revision"] = revision
    return {"pretrained_model_name_or_path": location, **options}


@contextlib.contextmanager
def _explained(resolved: ResolvedModel) -> Iterator[None]:
    """Turn the many exceptions of a load into one that states fault, reason and way out. Damaged files raise anything,
    even a plain ``Exception`` (of tokenizers)."""
    name = resolved.path_or_id
    try:
        yield
    except SelfCorrectError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split("\n\n")[0].split()) or type(error).__name__
        if "trust_remote_code" in str(error):
            raise ModelError(
                f"model {name!r} can be loaded only by running the code in its repository, which needs your consent; read "
                "that code, then set model.trust_remote_code=true, or take another model"
            ) from error
        way_out = (
            "check the spelling and the network (`hf auth login` for a gated model), give the path of a local copy, or "
            "take an embedded model, which needs no network: model=tiny or model=smollm2"
            if resolved.kind == "hub"
            else "give a whole directory as save_pretrained writes it (copy it again if files are missing or cut), or a smaller "
            "model if memory ran out"
        )
        where = "from the Hugging Face Hub or its local cache" if resolved.kind == "hub" else "from its directory"
        raise ModelError(f"model {name!r} could not be loaded {where}: {reason}; {way_out}") from error


def _causal_class(config: Any) -> Any:
    """The transformers class that would be built; None for other kinds of model and for remote code."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    found = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    return found[0] if isinstance(found, tuple) else found


def _not_plain(what: str) -> ModelError:
    return ModelError(
        f"the model has {what}, which a plain key-value cache cannot hold, so attempt 2 could not continue from "
        "attempt 1's; take a model with full attention in every layer (Llama, Qwen2, Qwen3, SmolLM2, ...)"
    )
