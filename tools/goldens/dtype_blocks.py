#!/usr/bin/env python3
"""Writes tests/golden/dtype_blocks.bin: random blocks of every format and what the `gguf` package
decodes them to. Q1_0 and Q2_0, which it lacks, are decoded here from their definition.

Records: u32 format, u32 bytes, u32 weights, the bytes, the weights as f32; all little-endian.
Usage: dtype_blocks.py > tests/golden/dtype_blocks.bin
"""
import sys

import gguf
import numpy as np
from gguf import GGML_QUANT_SIZES, quants

rng = np.random.default_rng(20240607)


def decode(number, raw):
    if number == 1:
        return raw.view(np.float16).astype(np.float32)
    if number in (41, 42):
        d = raw[:, :2].copy().view(np.float16).astype(np.float32)
        bits = 1 if number == 41 else 2
        q = raw[:, 2:, None] >> np.arange(0, 8, bits, dtype=np.uint8) & (2**bits - 1)
        q = q.reshape(len(raw), -1).astype(np.float32)
        return d * (2 * q - 1 if number == 41 else q - 1)
    return gguf.dequantize(raw, gguf.GGMLQuantizationType(number))


formats = {int(t): GGML_QUANT_SIZES[t] for t in quants._type_traits}
formats |= {1: (1, 2), 41: (128, 18), 42: (64, 18)}
for number, (length, size) in sorted(formats.items()):
    n_blocks = {1: 64, 32: 6, 64: 4, 128: 4, 256: 3}[length]
    kept = np.empty((0, size), dtype=np.uint8)
    while len(kept) < n_blocks:  # NaN bits are nobody's contract
        raw = rng.integers(0, 256, (1, size), dtype=np.uint8)
        with np.errstate(all="ignore"):
            if np.isfinite(decode(number, raw)).all():
                kept = np.concatenate([kept, raw])
    floats = decode(number, kept).astype("<f4").ravel()
    sys.stdout.buffer.write(np.array([number, kept.size, floats.size], dtype="<u4").tobytes())
    sys.stdout.buffer.write(kept.tobytes() + floats.tobytes())
