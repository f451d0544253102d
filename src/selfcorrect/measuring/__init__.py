"""What a model can do, with intervals: evaluation, metrics, comparison, test-time scaling."""
