"""Everything that runs inside the sandbox. Imports the standard library only, and nothing of the rest of the package.

The directory is mounted read-only in the sandbox, and imported there as the top-level package ``inside``.
"""
