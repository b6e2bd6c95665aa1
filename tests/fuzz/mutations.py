"""Changes of bytes, of JSON and of safetensors files, each from a random generator alone."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable, MutableMapping, MutableSequence
from typing import Any

INTEGERS = (
    *(0, 1, -1, 2, 3, 4, 5, 7, 8, 16, 63, 64, 65, 127, 255, 256, 1000, 4096, 65535, 65536),
    *(2**31 - 1, 2**31, -(2**31), 2**32, 2**40, 2**62, 2**63 - 1, -(2**63), -2, -7),
)
FLOATS = (0.0, -0.0, 1.0, -1.0, 0.5, 1e-30, 1e30, 3e38, -3e38, 1e300, *map(float, ("inf", "nan")))
TEXTS = (
    *("", "x", "y", "w", " ", "\n", "__metadata__", "../../etc/passwd", "/dev/zero", "a/b", "."),
    *("NOTSET", "SAME_UPPER", "VALID", "\0", "é" * 3, "n" * 5000, "%s{}", "batch", "-1", "bnnopt"),
)


def integer(rng: random.Random, near: int | None = None) -> int:
    """One that is likely to go wrong, or one near by."""
    if near is not None and rng.random() < 0.5:
        return max(-(2**63), min(2**63 - 1, near + rng.choice((-8, -2, -1, 1, 2, 8, near, -near))))
    return rng.choice(INTEGERS)


def number(rng: random.Random) -> float:
    """A float that is likely to go wrong."""
    return rng.choice(FLOATS)


def text(rng: random.Random) -> str:
    """A name that is likely to go wrong."""
    return rng.choice(TEXTS)


def change_bytes(data: bytes, rng: random.Random) -> bytes:
    """Cut short, some bits or bytes others, a stretch left out, doubled or moved."""
    if not data:
        return bytes(rng.randrange(256) for _ in range(rng.randrange(1, 64)))
    raw, kind = bytearray(data), rng.randrange(6)
    start = rng.randrange(len(raw))
    stretch = slice(start, start + rng.choice((1, 4, 16, 256)))
    if kind == 0:
        del raw[start:]
    elif kind == 1:
        for _ in range(rng.choice((1, 2, 8, 64))):
            raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
    elif kind == 2:
        for _ in range(rng.choice((1, 2, 8))):
            raw[rng.randrange(len(raw))] = rng.choice((0, 1, 127, 128, 255))
    elif kind == 3:
        del raw[stretch]
    elif kind == 4:
        raw[start:start] = raw[stretch]
    else:
        target = rng.randrange(len(raw))
        raw[target : target + len(raw[stretch])] = raw[stretch]
    return bytes(raw)


def change_value(value: Any, rng: random.Random) -> Any:
    """Something else, of the same type more often than not."""
    if rng.random() < 0.2:
        return rng.choice((None, True, {}, [], text(rng), integer(rng), number(rng), [[]], [None]))
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return integer(rng, value)
    if isinstance(value, float):
        return number(rng)
    if isinstance(value, str):
        return text(rng) if rng.random() < 0.7 else value[: rng.randrange(len(value) + 1)]
    if isinstance(value, list):
        return change_list(value, rng)
    if isinstance(value, dict):
        return {k: v for k, v in value.items() if rng.random() < 0.8}
    return rng.choice((0, "", [], {}))


def change_list(values: list[Any], rng: random.Random) -> list[Any]:
    """Shorter, longer, another order, or one of it changed."""
    changed, kind = list(values), rng.randrange(5)
    if not changed or kind == 0:
        return [*changed, rng.choice((*changed, integer(rng)))]
    place = rng.randrange(len(changed))
    if kind == 1:
        del changed[place]
    elif kind == 2:
        rng.shuffle(changed)
    else:
        changed[place] = change_value(changed[place], rng)
    return changed


def change_json(fields: Any, rng: random.Random) -> Any:
    """Somewhere within, a value changed, or a key left out, doubled or renamed."""
    node = fields
    while True:
        keys = _keys(node)
        if not keys:
            return fields
        key = rng.choice(keys)
        child = node[key]
        if isinstance(child, dict | list) and child and rng.random() < 0.85:
            node = child
            continue
        if isinstance(node, MutableMapping) and rng.random() < 0.15:
            del node[key]
            if rng.random() < 0.5:
                node[text(rng)] = child
        else:
            node[key] = change_value(child, rng)
        return fields


def _keys(node: MutableMapping[str, Any] | MutableSequence[Any]) -> list[Any]:
    return list(node) if isinstance(node, MutableMapping) else list(range(len(node)))


def change_tensors(data: bytes, rng: random.Random) -> bytes:
    """A safetensors file with another header or other elements, or other bytes anywhere."""
    (length,) = struct.unpack("<Q", data[:8])
    header, body = data[8 : 8 + length], data[8 + length :]
    kind = rng.random()
    if kind < 0.2:
        return change_bytes(data, rng)
    if kind < 0.4:
        return struct.pack("<Q", length) + header + change_bytes(body, rng)
    if kind < 0.5:
        return struct.pack("<q", integer(rng, length)) + header + body
    fields = change_json(json.loads(header), rng)
    changed = json.dumps(fields).encode("utf-8", "surrogatepass")
    changed += b" " * (-len(changed) % 8)
    return struct.pack("<Q", len(changed)) + changed + body


Change = Callable[[bytes, random.Random], bytes]
