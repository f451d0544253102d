"""The remote engine: a server of the Tinker API, hosted or run by the user with SkyRL. LoRA only."""

from selfcorrect.engines.tinker_engine.engine import TinkerEngine

__all__ = ["TinkerEngine"]
