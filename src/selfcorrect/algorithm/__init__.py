"""The method: from verdicts and log-probs to one weight per sampled token. Pure functions; no models, no I/O.

Read ``stages.py`` for the paper's table of numbers, then ``credit.py``: each function is one equation of the method.
``losses.py`` (torch) holds the two losses that an engine applies to the weights.
"""
