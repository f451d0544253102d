"""The methods as data: a method is a list of stages, a stage is a few numbers. There is one training loop."""

from selfcorrect.methods.data import BatchReport, policy_gradient_data
from selfcorrect.methods.stages import METHODS, Stage, plan

__all__ = ["METHODS", "BatchReport", "Stage", "plan", "policy_gradient_data"]
