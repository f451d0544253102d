"""The embedded engine: PyTorch on a CPU or one GPU, trainer and sampler on the same weights, or vLLM as the sampler."""

from selfcorrect.engines.torch_engine.engine import TorchEngine

__all__ = ["TorchEngine"]
