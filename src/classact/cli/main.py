"""The command line: parse, dispatch, report errors."""

from __future__ import annotations

import difflib
import logging
import shlex
import sys
from collections.abc import Sequence

from classact import __version__
from classact.cli import COMMANDS
from classact.cli.console import forget_output, prepare_streams, say
from classact.errors import ClassactError, TrainingInterrupted
from classact.utils.lazy import resolve
from classact.utils.progress import tell

PROGRAM = "classact"
INTERRUPTED = 130  # exit status after Ctrl-C, as shells have it
_GROUPS = {name.split()[0] for name in COMMANDS if " " in name}


def _usage() -> str:
    lines = [f"usage: {PROGRAM} COMMAND [flags]; {PROGRAM} COMMAND --help", "", "commands:"]
    width = max(map(len, COMMANDS))
    for name, place in COMMANDS.items():
        lines.append(f"  {name:<{width}} {resolve(place).__doc__.strip().splitlines()[0]}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the ``classact`` command.

    Returns:
        Exit status: 0, 1 for errors of classact (their message is printed), 2 for wrong usage, 130 after Ctrl-C.
    """
    prepare_streams()
    try:
        status = _run(list(sys.argv[1:] if argv is None else argv))
        say()  # while a closed reader or a full disk can still be told from success
    except ClassactError as error:
        tell(f"{PROGRAM}: error: {error}")
        return 1
    except OSError as problem:
        if problem.filename is None:
            raise
        tell(f"{PROGRAM}: error: {problem.filename}: {problem.strerror}")
        return 1
    return status


def _run(arguments: list[str]) -> int:
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    if arguments[:1] == ["--version"]:
        say(__version__)
        return 0
    words = 2 if arguments and arguments[0] in _GROUPS else 1
    if len(arguments) < words or arguments[words - 1] in ("-h", "--help"):
        say(_usage())
        return 2 if len(arguments) < words else 0
    name = " ".join(arguments[:words])
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        tell(f"{PROGRAM}: unknown command {name!r}{hint}\n\n{_usage()}")
        return 2
    from classact.cli.flags import UsageError, parse

    try:
        command = parse(resolve(COMMANDS[name]), arguments[words:], f"{PROGRAM} {name}")
    except UsageError as problem:
        tell(f"{PROGRAM} {name}: error: {problem} See {PROGRAM} {name} --help.")
        return 2
    except SystemExit:  # it has printed its help
        say()
        raise
    except BrokenPipeError:
        forget_output()
        return 0
    again = f"Continue with: {shlex.join([PROGRAM, *arguments])}"
    try:
        return command.main() or 0
    except TrainingInterrupted as stop:
        tell(f"{PROGRAM}: {stop}\n{again}")
        return INTERRUPTED
    except KeyboardInterrupt:
        tell(f"{PROGRAM}: stopped. {again}")
        return INTERRUPTED
