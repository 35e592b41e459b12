"""`python -m perla` is `perla`."""

import sys

from perla.cli import main

if __name__ == "__main__":
    sys.exit(main())
