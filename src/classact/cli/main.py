"""The command line: parse, dispatch, say what went wrong."""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Sequence

import tyro

from classact.cli import COMMANDS
from classact.errors import ClassactError, TrainingInterrupted

PROGRAM = "classact"
INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""

_GROUPS = {name.split()[0] for name in COMMANDS if " " in name}


def _usage() -> str:
    lines = [f"usage: {PROGRAM} COMMAND [flags]; {PROGRAM} COMMAND --help", "", "commands:"]
    width = max(map(len, COMMANDS))
    lines += [f"  {name:<{width}} {(cls.__doc__ or '').strip().splitlines()[0]}" for name, (cls, _) in COMMANDS.items()]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the ``classact`` command.

    Returns:
        Exit status: 0, 1 for errors raised on purpose (their message is printed), 2 for wrong usage, 130 after Ctrl-C.
    """
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["--version"]:
        from classact import __version__

        print(__version__)
        return 0
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return 0 if arguments else 2
    if arguments[0] in _GROUPS and (not arguments[1:] or arguments[1] in ("-h", "--help")):
        print(_usage())
        return 0 if arguments[1:] else 2
    words = 2 if arguments[0] in _GROUPS else 1
    name = " ".join(arguments[:words])
    if name not in COMMANDS:
        print(f"{PROGRAM}: unknown command {name!r}\n\n{_usage()}", file=sys.stderr)
        return 2
    parser, command = COMMANDS[name]
    parsed = tyro.cli(parser, args=arguments[words:], prog=f"{PROGRAM} {name}", description=parser.__doc__)
    again = f"Continue with: {shlex.join([PROGRAM, *arguments])}"
    try:
        return command(parsed) or 0
    except TrainingInterrupted as stop:
        print(f"{PROGRAM}: {stop}\n{again}", file=sys.stderr)
        return INTERRUPTED
    except ClassactError as error:
        print(f"{PROGRAM}: error: {error}", file=sys.stderr)
        return 1
    except OSError as problem:
        if problem.filename is None:
            raise
        print(f"{PROGRAM}: error: {problem.filename}: {problem.strerror}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{PROGRAM}: stopped. {again}", file=sys.stderr)
        return INTERRUPTED
