"""Decodes every tensor of a GGUF file to F32 with gguf-py and keeps the metadata: the original that
cuts are judged against, written by a program that is not ours.

usage: decode_f32.py IN.gguf OUT.gguf
"""
import os
import sys

import gguf
import numpy as np


def decode(source, target):
    reader = gguf.GGUFReader(source)
    arch = str(bytes(reader.fields["general.architecture"].parts[-1]), "utf-8")
    writer = gguf.GGUFWriter(target + ".part", arch)
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key == "general.architecture":
            continue
        kind = field.types[0]
        value, sub = field.contents(), None
        if kind == gguf.GGUFValueType.ARRAY:
            sub = field.types[-1]
        if key == "general.file_type":
            value = 0  # all F32
        writer.add_key_value(key, value, kind, sub)
    for t in reader.tensors:
        shape = [int(n) for n in reversed(t.shape)]
        writer.add_tensor_info(t.name, shape, np.dtype(np.float32), int(np.prod(shape)) * 4)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for t in reader.tensors:  # one at a time: the whole may not fit the memory
        shape = [int(n) for n in reversed(t.shape)]
        values = gguf.dequantize(t.data, t.tensor_type).reshape(shape)
        writer.write_tensor_data(np.ascontiguousarray(values, np.float32))
    writer.close()
    os.replace(target + ".part", target)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    decode(sys.argv[1], sys.argv[2])
