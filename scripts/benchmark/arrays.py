"""Results of contestants (.npy files) and how far two of them agree."""

import array
import ast
from pathlib import Path

MAGIC = b"\x93NUMPY"
# Type codes of `array` for the types that contestants write.
CODES = {"|u1": "B", "<u2": "H", "<u4": "I", "<f4": "f", "<f8": "d"}


class ArrayError(Exception):
    """A result cannot be read or compared."""


def read(path):
    """Shape, type and values of a .npy file in C order."""
    raw = Path(path).read_bytes()
    if not raw.startswith(MAGIC) or len(raw) < 12:
        raise ArrayError(f"{path} is no .npy file")
    # Version 1 has 2 bytes for the header's length, later ones 4.
    size = 2 if raw[6] == 1 else 4
    begin = 8 + size
    end = begin + int.from_bytes(raw[8:begin], "little")
    header = ast.literal_eval(raw[begin:end].decode("latin1"))
    kind = header["descr"]
    if header["fortran_order"] or kind not in CODES:
        raise ArrayError(f"{path} holds {header}, which contestants do not write")
    values = array.array(CODES[kind])
    values.frombytes(raw[end:])
    return header["shape"], kind, values


def pair(one, other):
    """The values of two files of one shape and kind."""
    (shape, kind, values), (other_shape, other_kind, other_values) = read(one), read(other)
    if (shape, kind) != (other_shape, other_kind):
        raise ArrayError(f"{one} is {kind}{shape}, {other} is {other_kind}{other_shape}")
    return values, other_values


def agreement(one, other):
    """Share of equal values, 0..1."""
    a, b = pair(one, other)
    return sum(map(int.__eq__, a, b)) / len(a) if len(a) else 1.0


def distance(one, other):
    """Largest difference of two values."""
    a, b = pair(one, other)
    return max((abs(x - y) for x, y in zip(a, b)), default=0.0)
