"""The errors a user can meet: one line each, saying what, where, found, expected and what to do.

The command line turns them into exit codes; nothing else is caught there, so a traceback always
means a defect in bnnopt.
"""

from __future__ import annotations

from collections.abc import Iterable

LONGEST = 1000  # characters of a message
COMPILER = ("onnx", "onnx_ir", "rich")  # what the extra `compile` brings


class BnnoptError(Exception):
    """Base of all errors that are not a defect in bnnopt.

    A message is one line of at most `LONGEST` characters, whatever names and reasons of others
    are in it: a longer one loses its middle.

    Attributes
    ----------
    exit_code : int
        What ``bnnopt`` exits with when this error reaches the command line.
    """

    exit_code = 2

    def __init__(self, message: str) -> None:
        line = " ".join(message.split())
        if len(line) > LONGEST:
            line = f"{line[: LONGEST // 2]} .. {line[-LONGEST // 3 :]}"
        super().__init__(line)


class UsageError(BnnoptError):
    """An option or argument that cannot be used."""


class ModelError(BnnoptError):
    """A model file that cannot be read, or cannot be trained as it is."""


class ArtifactError(BnnoptError):
    """An output folder that cannot be written, or one that was not written by bnnopt."""


class BudgetError(BnnoptError):
    """No set of passes fits the memory budget."""

    exit_code = 3


class VerificationError(BnnoptError):
    """A rewritten step that should be bit-equal to the reference is not."""

    exit_code = 1


class DivergedError(BnnoptError):
    """A training step whose loss, weights or state would be NaN or infinite.

    Attributes
    ----------
    is_undone : bool
        Whether the state of before the step is there; if not, the session has to go on from a
        checkpoint. The message says so too.
    """

    def __init__(self, message: str, is_undone: bool = False) -> None:
        super().__init__(message)
        self.is_undone = is_undone


def no_compiler(error: ModuleNotFoundError, what: str) -> UsageError:
    """The line for something that needs the compiler, on a device that has none.

    Raises
    ------
    ModuleNotFoundError
        The error itself, if it is about another module.
    """
    missing = str(error.name).partition(".")[0]
    if missing not in COMPILER:
        raise error
    return UsageError(
        f"{what} needs the compiler, of which {missing} is not installed; "
        "pip install 'bnnopt[compile]'"
    )


def did_you_mean(found: str, known: Iterable[str]) -> str:
    """A hint for the end of a line: ``; did you mean 'adam'?``, empty if nothing is near."""
    from difflib import get_close_matches  # only where a line is written: a device starts fast

    near = get_close_matches(found, list(known), 1)
    return f"; did you mean {near[0]!r}?" if near else ""
