"""Every setting of a run, and how the layers of settings become one ``Config``."""

from selfcorrect.config.loading import PRESET_MARKER, SHIPPED, load_config, override, preset_name, restore, validate
from selfcorrect.config.sections import (
    Config,
    EvalConfig,
    ModelConfig,
    SftConfig,
    TinkerEngineConfig,
    TorchEngineConfig,
    TrackerName,
    TrainConfig,
    all_keys,
    default_of,
    readers,
)
from selfcorrect.config.tasks import TaskConfig

__all__ = [
    "PRESET_MARKER",
    "SHIPPED",
    "Config",
    "EvalConfig",
    "ModelConfig",
    "SftConfig",
    "TaskConfig",
    "TinkerEngineConfig",
    "TorchEngineConfig",
    "TrackerName",
    "TrainConfig",
    "all_keys",
    "default_of",
    "load_config",
    "override",
    "preset_name",
    "readers",
    "restore",
    "validate",
]
