"""``python -m classact``."""

import sys

# Spawned simulator processes import this module too; they have no use for the command line.
if __name__ == "__main__":
    from classact.cli.main import main

    sys.exit(main())
