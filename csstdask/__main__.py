"""``python -m csstdask``."""

from csstdask.cli import main

main()
