#!/usr/bin/env python3
"""Writes src/dtype/grids.cpp: the code words of the lattice formats, from the `gguf` package.

A word is 16 bits: eight 2-bit or four 4-bit indices into the format's list of magnitudes,
lowest first. Usage: dtype_grids.py > src/dtype/grids.cpp
"""
import numpy as np
from gguf import quants

TABLES = [("kGridIq2Xxs", quants.IQ2_XXS, 2), ("kGridIq2Xs", quants.IQ2_XS, 2),
          ("kGridIq2S", quants.IQ2_S, 2), ("kGridIq3Xxs", quants.IQ3_XXS, 4),
          ("kGridIq3S", quants.IQ3_S, 4), ("kGridIq1", quants.IQ1_S, 2)]

print("// Written by tools/goldens/dtype_grids.py: facts of the formats, not to be edited.")
print('#include "dtype/grids.h"\n\nnamespace mt {\n\n// clang-format off')
for name, cls, bits in TABLES:
    cls.init_grid()
    grid = cls.grid.reshape(cls.grid_shape)
    index = np.stack([grid == v for v in cls.grid_map]).argmax(axis=0)
    assert (np.array(cls.grid_map, dtype=np.float32)[index] == grid).all()
    words = [sum(int(v) << (bits * i) for i, v in enumerate(row)) for row in index]
    print(f"const uint16_t {name}[{len(words)}] = {{")
    for i in range(0, len(words), 14):
        print("  " + " ".join(f"{w}," for w in words[i:i + 14]))
    print("};")
print("// clang-format on\n\n}  // namespace mt")
