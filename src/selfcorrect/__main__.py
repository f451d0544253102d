"""``python -m selfcorrect``: the command line."""

from selfcorrect.cli import main

main()
