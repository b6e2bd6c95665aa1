"""The boundary to C: what Python declares is what the headers say, asked of the compiler."""

from __future__ import annotations

import ctypes
import functools
import importlib
import pkgutil
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest

from bnnopt.runtime import library, pruning
from bnnopt.runtime.kernels import compiled, tiling
from bnnopt.runtime.kernels.compiled import calls, convolution
from bnnopt.runtime.kernels.compiled.elementwise import FORMS
from bnnopt.runtime.kernels.compiled.functions import CFunction
from bnnopt.runtime.kernels.compiled.optimizers import RULES, Update

CSRC = Path(__file__).parents[2] / "runtime" / "csrc"
COMPILER = shutil.which("cc")
# Exported for `library` and the tests, which pass ints.
CONTROLS = {"bnn_threads", "bnn_set_threads", "bnn_set_default_threads"}
CONTROLS |= {"bnn_has_avx2", "bnn_has_avx512", "bnn_has_avx512_popcount", "bnn_limit_kernels"}

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C compiler")


def asked(folder: Path, headers: Sequence[str], expressions: Sequence[str]) -> list[int]:
    """The values of integer expressions in C."""
    source = folder / "ask.c"
    includes = "".join(f'#include "{header}"\n' for header in headers)
    prints = "".join(f'    printf("%lld\\n", (long long)({e}));\n' for e in expressions)
    source.write_text(
        f"#include <stddef.h>\n#include <stdio.h>\n{includes}int main(void) {{\n{prints}}}\n"
    )
    command = [str(COMPILER), "-std=gnu11", "-w", "-O1", f"-I{CSRC}", str(source)]
    needed_only = ["-ffunction-sections", "-Wl,--gc-sections,--unresolved-symbols=ignore-all"]
    subprocess.run([*command, *needed_only, "-o", str(folder / "ask"), "-lm"], check=True)
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
    types = asked(tmp_path, ["bnn.h"], ["BNN_F32", "BNN_U8", "BNN_I8", "BNN_I16", "BNN_F16"])
    kinds = [np.dtype(name) for name in ("float32", "uint8", "int8", "int16", "float16")]
    assert types == [calls.TYPES[kind] for kind in kinds]
    assert types == [onnx.helper.np_dtype_to_tensor_dtype(kind) for kind in kinds]
    rules = [name.removesuffix("Step").replace("AdamW", "Adam") for name in RULES]
    names = ["BNN_" + re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).upper() for name in rules]
    assert asked(tmp_path, ["bnn_optimizers.c"], names) == [r.number for r in RULES.values()]


def test_another_order_shows(tmp_path: Path) -> None:
    found = asked(tmp_path, ["bnn_update.h"], ["offsetof(bnn_update, m)"])
    assert found != [Update.w.offset]


@functools.cache
def exported() -> dict[str, str]:
    """The functions that the sources define for others, by name, as Python declares them."""
    pattern = re.compile(r"EXPORTED (\w+) (\w+)\(([^)]*)\)\s*\{")
    found: dict[str, str] = {}
    for source in sorted(CSRC.glob("*.c")):
        command = [str(COMPILER), "-E", "-P", str(source)]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        text = text.replace('__attribute__((visibility("default")))', "EXPORTED")
        for result, name, parameters in pattern.findall(text):
            types = (re.sub(r"\bconst\b|\w+\s*$|\s", "", p) for p in parameters.split(","))
            found[name] = f"{result} {name}({', '.join(types)})"
    return found


def declared() -> Iterator[CFunction]:
    """The functions that a module of calls declares."""
    names = [info.name for info in pkgutil.iter_modules(compiled.__path__)]
    modules = [importlib.import_module(f"{compiled.__name__}.{name}") for name in names]
    for module in (*modules, pruning):
        yield from (value for value in vars(module).values() if isinstance(value, CFunction))


def wrongly_declared(functions: Iterable[CFunction]) -> list[str]:
    """The prototypes that are not those of the sources."""
    theirs = exported()
    return [f.prototype for f in functions if theirs.get(f.name) != f.prototype]


def test_prototypes_are_those_of_the_sources() -> None:
    functions = set(declared())
    assert wrongly_declared(functions) == []
    assert len({function.name for function in functions}) == len(functions), "declared twice"


def test_elementwise_functions_have_the_parameters_of_their_form() -> None:
    others = {function.name for function in declared()} | CONTROLS
    for name, prototype in exported().items():
        if name not in others:
            form = next(form for form in reversed(FORMS) if name.endswith(f"_{form}"))
            assert prototype == f"void {name}({FORMS[form]})"


@pytest.mark.parametrize(
    "prototype",
    [
        "void bnn_sign_pack(float*, uint8_t*, i64, i64, i64)",
        "void bnn_sign_pack(void*, uint8_t*, i64, i64, float)",
        "void bnn_sign_pack(void*, uint8_t*, i64, i64)",
        "int bnn_sign_pack(void*, uint8_t*, i64, i64, i64)",
        "void bnn_sign_peck(void*, uint8_t*, i64, i64, i64)",
    ],
)
def test_a_wrong_prototype_shows(prototype: str) -> None:
    assert wrongly_declared([CFunction(prototype)]) == [prototype]


@pytest.mark.parametrize(
    "arguments",
    [
        (np.zeros(8, np.float64), np.zeros(1, np.uint8), 1, 8),
        (np.zeros(8, np.float32), np.zeros(1, np.float32), 1, 8),
        (np.zeros(8, np.float32), np.zeros(1, np.uint8), 1.0, 8),
        (np.zeros(8, np.float32), np.zeros(1, np.uint8), 1),
        (1 << 20, np.zeros(1, np.uint8), 1, 8),
    ],
)
def test_an_argument_of_another_type_is_not_passed_on(arguments: tuple[object, ...]) -> None:
    function = CFunction("void bnn_never_called(float*, uint8_t*, i64, i64)")
    with pytest.raises((TypeError, ValueError)):
        function(*arguments)  # type: ignore[arg-type]
