"""`python -m bdaudit`."""

from bdaudit.cli import main

main()
