"""Train a language model to correct its own answers: SCoRe (Kumar et al. 2024, arXiv:2409.12917)."""

import os

# Read when torch is loaded, so they are set here. Threads that spin while they wait make each other up to 20 times slower
# when other processes use the same cores. A user's own OpenMP settings win.
if not os.environ.keys() & {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"}:
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"

__version__ = "0.1.0"
