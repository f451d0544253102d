"""The paper's tables and diagnostics: runs what is missing, measures, and writes ours beside the paper's figures."""
