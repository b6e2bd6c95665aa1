"""Finding the compiled kernels: what is in the way is one line, and numpy takes over."""

from __future__ import annotations

from pathlib import Path

import pytest

from bnnopt.errors import UsageError
from bnnopt.runtime import library


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A place where the library is looked for, alone; what was loaded stays for other tests."""
    candidate = tmp_path / library.NAME
    monkeypatch.setattr(library, "_candidates", lambda: iter([str(candidate)]))
    monkeypatch.setattr(library, "library", library.library.__wrapped__)
    return candidate


@pytest.mark.parametrize("content", [b"", b"\x7fELF", b"not a library at all"])
def test_a_library_that_does_not_load_is_a_warning(fresh: Path, content: bytes) -> None:
    fresh.write_bytes(content)
    with pytest.warns(RuntimeWarning, match="does not load here") as caught:
        assert library.library() is None
    assert str(fresh) in str(caught[0].message)
    assert "\n" not in str(caught[0].message)


def test_without_a_library_there_is_a_warning(fresh: Path) -> None:
    with pytest.warns(RuntimeWarning, match="install a C compiler"):
        assert library.library() is None


def test_threads_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for text, expected in (("1", 1), ("2", 2), ("4", library.MAX_THREADS)):
        monkeypatch.setenv("BNNOPT_NUM_THREADS", text)
        assert library.default_threads() == expected
    for text in ("abc", "0", "-1", "1.5", "99"):
        monkeypatch.setenv("BNNOPT_NUM_THREADS", text)
        with pytest.raises(UsageError, match=r"BNNOPT_NUM_THREADS is .* expected 1 to 4; set one"):
            library.default_threads()
