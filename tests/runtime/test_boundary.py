"""The boundary to C: what Python declares is what the headers say, asked of the compiler."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from bnnopt.runtime import library
from bnnopt.runtime.kernels import tiling
from bnnopt.runtime.kernels.compiled import calls, convolution
from bnnopt.runtime.kernels.compiled.binary_products import NUMBERS
from bnnopt.runtime.kernels.compiled.optimizers import _RULES, Update

CSRC = Path(__file__).parents[2] / "runtime" / "csrc"
COMPILER = shutil.which("cc")

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C compiler")


def asked(folder: Path, headers: Sequence[str], expressions: Sequence[str]) -> list[int]:
    """The values of integer expressions in C."""
    source = folder / "ask.c"
    includes = "".join(f'#include "{header}"\n' for header in headers)
    prints = "".join(f'    printf("%lld\\n", (long long)({e}));\n' for e in expressions)
    source.write_text(
        f"#include <stddef.h>\n#include <stdio.h>\n{includes}int main(void) {{\n{prints}}}\n"
    )
    command = [str(COMPILER), "-std=gnu11", "-w", "-O1", f"-I{CSRC}", str(source), "-c"]
    subprocess.run([*command, "-o", str(folder / "ask.o")], check=True)
    link = [str(COMPILER), str(folder / "ask.o"), "-o", str(folder / "ask"), "-lm"]
    subprocess.run([*link, "-Wl,--unresolved-symbols=ignore-all"], check=True)
    found = subprocess.run([str(folder / "ask")], check=True, capture_output=True, text=True)
    return [int(line) for line in found.stdout.split()]


def test_the_fields_of_an_update(tmp_path: Path) -> None:
    names = [str(field[0]) for field in Update._fields_]
    sizes = [f"sizeof(((bnn_update *)0)->{name})" for name in names]
    expressions = [f"offsetof(bnn_update, {name})" for name in names]
    found = asked(tmp_path, ["bnn_update.h"], ["sizeof(bnn_update)", *expressions, *sizes])
    fields = [getattr(Update, name) for name in names]
    assert found == [ctypes.sizeof(Update), *(f.offset for f in fields), *(f.size for f in fields)]


@pytest.mark.parametrize(
    ("struct", "fields"),
    [("bnn_conv", tiling.Convolution._fields), ("bnn_gemm", tiling.Dense._fields)],
)
def test_geometries_are_passed_in_the_order_of_their_fields(
    struct: str, fields: tuple[str, ...], tmp_path: Path
) -> None:
    expressions = [f"offsetof({struct}, {name})" for name in fields]
    found = asked(tmp_path, ["bnn_products.h"], [f"sizeof({struct})", *expressions])
    assert found == [8 * len(fields), *range(0, 8 * len(fields), 8)]


def test_constants_of_the_binary_products(tmp_path: Path) -> None:
    tables = "BNN_TABLES_BYTES + TERMS * LANES * sizeof(float)"
    names = ["LANES", "STRINGS", "TERMS", tables, "BNN_MAX_THREADS"]
    *found, most_threads = asked(tmp_path, ["bnn_products.h"], names)
    assert found == [tiling.LANES, tiling.STRINGS, tiling.TERMS, tiling.TABLES_BYTES]
    assert most_threads >= library.MAX_THREADS


def test_constants_of_the_real_products(tmp_path: Path) -> None:
    found = asked(tmp_path, ["bnn_real.h"], ["PANEL", "LANES16"])
    assert found == [convolution.PANEL, convolution.LANES16]


def test_types_of_elements_and_rules_are_numbered_alike(tmp_path: Path) -> None:
    types = asked(tmp_path, ["bnn_tiles.h"], ["BNN_F32", "BNN_F16", "BNN_I16"])
    kinds = [np.dtype(np.float32), np.dtype(np.float16), np.dtype(np.int16)]
    assert types == [calls.MAP_TYPES.index(kind) for kind in kinds]
    in_products = ["BNN_FLOAT", "BNN_FLOAT16", "BNN_INT16", "BNN_SIGNS"]
    numbers = [NUMBERS[kind] for kind in (*kinds, np.dtype(np.uint8))]
    assert asked(tmp_path, ["bnn_products.h"], in_products) == numbers
    rules = {"SgdStep": "SGD", "MomentumStep": "MOMENTUM", "AdamStep": "ADAM", "AdamWStep": "ADAM"}
    rules |= {"FirstMomentStep": "FIRST_MOMENT", "BopStep": "BOP"}
    found = asked(tmp_path, ["bnn_update.h"], [f"BNN_{rules[name]}" for name in _RULES])
    assert found == [number for number, _ in _RULES.values()]


def test_another_order_shows(tmp_path: Path) -> None:
    found = asked(tmp_path, ["bnn_update.h"], ["offsetof(bnn_update, m)"])
    assert found != [Update.w.offset]
