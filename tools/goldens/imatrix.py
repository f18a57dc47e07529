"""Writes tests/golden/imatrix_gguf_py.gguf and imatrix_legacy.dat: importance matrices made by an
independent writer. Needs: pip install gguf numpy."""
import pathlib
import struct

import gguf
import numpy as np

golden = pathlib.Path(__file__).resolve().parents[2] / "tests" / "golden"
entries = {
    "blk.0.attn_q.weight": (np.arange(8, dtype=np.float32) * 1.5, [96.0]),
    "blk.0.ffn_down.weight": (np.full(12, 0.25, np.float32), [128.0]),
}

w = gguf.GGUFWriter(golden / "imatrix_gguf_py.gguf", arch="", use_temp_file=False)
w.kv_data[0].clear()  # the writer adds general.architecture, which an imatrix has not
w.add_string("general.type", "imatrix")
w.add_array("imatrix.datasets", ["a.txt", "b.txt"])
w.add_uint32("imatrix.chunk_count", 7)
w.add_uint32("imatrix.chunk_size", 512)
for name, (sums, counts) in entries.items():
    w.add_tensor(name + ".in_sum2", sums.reshape(len(counts), -1))
    w.add_tensor(name + ".counts", np.array(counts, np.float32).reshape(-1, 1))
# two experts, one below the other
w.add_tensor("blk.0.ffn_up_exps.weight.in_sum2", np.array([[1, 2, 3], [10, 20, 30]], np.float32))
w.add_tensor("blk.0.ffn_up_exps.weight.counts", np.array([[4], [5]], np.float32))
w.write_header_to_file()
w.write_kv_data_to_file()
w.write_tensors_to_file()
w.close()

with open(golden / "imatrix_legacy.dat", "wb") as f:
    f.write(struct.pack("<i", len(entries)))
    for name, (sums, counts) in entries.items():
        f.write(struct.pack("<i", len(name)) + name.encode())
        f.write(struct.pack("<ii", int(counts[0]), len(sums)) + sums.tobytes())
    f.write(struct.pack("<i", 7) + struct.pack("<i", 5) + b"a.txt")
