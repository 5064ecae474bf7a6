"""``python -m classact``."""

import sys

from classact.cli import main

if __name__ == "__main__":
    sys.exit(main())
