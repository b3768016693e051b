"""`python -m snnzoo.cli`."""

from snnzoo.cli.main import main

main()
