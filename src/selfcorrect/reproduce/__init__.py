"""The paper's tables and diagnostics: runs what is missing, measures, and writes the results next to the paper's figures."""
