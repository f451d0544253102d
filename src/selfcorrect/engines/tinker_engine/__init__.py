"""The remote engine: a server of the Tinker API, hosted or SkyRL's on machines of one's own. LoRA only."""

from selfcorrect.engines.tinker_engine.engine import TinkerEngine

__all__ = ["TinkerEngine"]
