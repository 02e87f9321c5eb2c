#!/usr/bin/env python3
"""tokenizer.py IN.gguf OUT.gguf: the metadata of a GGUF file without its tensors.

What a cluster with made-up weights needs of a model: its tokenizer and its chat template, in a few megabytes."""
import struct
import sys

SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
STRING, ARRAY = 8, 9


def skip(data: bytes, at: int, kind: int) -> int:
    if kind in SIZES:
        return at + SIZES[kind]
    if kind == STRING:
        return at + 8 + struct.unpack_from("<Q", data, at)[0]
    if kind == ARRAY:
        of, count = struct.unpack_from("<IQ", data, at)
        at += 12
        for _ in range(count):
            at = skip(data, at, of)
        return at
    raise SystemExit(f"unknown type {kind} of a value")


def main() -> None:
    source, target = sys.argv[1:]
    with open(source, "rb") as file:
        data = file.read(64 << 20)
    magic, version, _, keys = struct.unpack_from("<4sIQQ", data, 0)
    if magic != b"GGUF":
        raise SystemExit(f"{source} is not a GGUF file")
    at = start = 24
    for _ in range(keys):
        at += 8 + struct.unpack_from("<Q", data, at)[0]
        at = skip(data, at + 4, struct.unpack_from("<I", data, at)[0])
    with open(target, "wb") as file:
        file.write(struct.pack("<4sIQQ", magic, version, 0, keys) + data[start:at])


main()
