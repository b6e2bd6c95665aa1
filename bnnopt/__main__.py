"""``python -m bnnopt``, and the entry point ``bnnopt``."""

import sys


def main() -> None:
    """Run the command line; where click is not installed, one line says so."""
    try:
        from bnnopt.cli import main as run
    except ModuleNotFoundError as error:
        if error.name != "click":
            raise
        print("bnnopt: the command line needs click, the library does not; pip install click",
              file=sys.stderr)  # fmt: skip
        sys.exit(2)
    run()


if __name__ == "__main__":
    main()
