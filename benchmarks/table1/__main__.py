"""``python benchmarks/table1``, from anywhere, or ``python -m table1`` beside it."""

import sys
from pathlib import Path

# Of a folder that is run, Python looks for modules within; table1 and what it shares with other scripts lie beside it.
sys.path[0] = str(Path(__file__).resolve().parents[1])

if __name__ == "__main__":
    from common import command
    from table1.command import Flags, main

    sys.exit(command(Flags, main))
