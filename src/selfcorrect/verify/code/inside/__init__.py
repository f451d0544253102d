"""Everything that runs inside the sandbox. Imports the standard library only, and nothing of the rest of the package.

The directory is bound read-only into the sandbox, and imported there as the top-level package ``inside``.
"""
