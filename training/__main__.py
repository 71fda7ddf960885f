"""`python -m training COMMAND`: from labelled cases to a student in Slicer. See training/README.md."""

from __future__ import annotations

import argparse
import importlib
import os
import sys

from MSTKDSegmentLib.allocation import keep_freed_memory
from MSTKDSegmentLib.errors import MSTKDError

# In the order in which they are used; each is a module of training.commands.
COMMANDS = (
    "check", "split", "prepare", "train", "calibrate", "compare", "evaluate", "tables", "panel", "ablate", "export",
    "card", "healthy", "bench", "brain", "template", "clinical", "raw", "appearance",
)  # fmt: skip


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in COMMANDS:
        module = importlib.import_module(f"training.commands.{name}")
        sub = commands.add_parser(name, help=module.HELP, description=module.__doc__)
        module.add_arguments(sub)
        sub.set_defaults(run_command=module.run)
    return parser


def main(argv: list[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    keep_freed_memory()
    try:
        arguments.run_command(arguments)
    except MSTKDError as error:
        print(f"training: error: {error}", file=sys.stderr)
        return error.exit_code
    except (OSError, ValueError, FloatingPointError) as error:
        print(f"training: error: {error}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        print(f'training: error: {error}; install the tools first: pip install -e ".[train]"', file=sys.stderr)
        return 1
    except KeyboardInterrupt as error:
        if os.environ.get("RANK", "0") == "0":  # one of torchrun's processes tells
            print(f"training: {str(error) or 'stopped; run the same command again to go on'}", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
