"""What each part of a cut is worth: the same number of bytes, one part more a row.

Every map in one format, rounded without weights, with input second moments only (what an importance
matrix holds), then as a profile weighs; feedback, biases; then the formats that the plan chooses at
the size of the first file; then refinement. Each file is judged by `microtome eval --against` on the
texts given.

usage: ablation.py MODEL.gguf --db MEASUREMENTS.db --judge wiki.test.raw [--judge code.txt]
                   [--type IQ4_NL] [--windows N] [--folder OUT] [-- OPTIONS of plan and cut]
Prints Markdown. What is done is kept in the folder.
"""
import argparse
import json
import pathlib
import subprocess
import sys

import gguf
import numpy as np

from acceptance import ROOT, kept


def microtome(*arguments):
    p = subprocess.run([str(ROOT / "build/microtome"), *map(str, arguments)], capture_output=True,
                       text=True)
    if p.returncode not in (0, 1):
        raise SystemExit(f"{arguments}: {p.stderr}")
    return p.stdout


def flat(source, target):
    """The importance matrix `source` with all channels alike."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, arch="")
    writer.add_string("general.type", "imatrix")
    writer.add_array("imatrix.datasets", ["none"])
    writer.add_uint32("imatrix.chunk_count", 1)
    writer.add_uint32("imatrix.chunk_size", 512)
    for t in reader.tensors:
        data = np.ones_like(t.data) if t.name.endswith(".in_sum2") else np.array(t.data)
        writer.add_tensor(t.name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    a.add_argument("model")
    a.add_argument("--db", required=True)
    a.add_argument("--judge", action="append", required=True)
    a.add_argument("--type", default="IQ4_NL")
    a.add_argument("--windows", type=int, default=16)
    a.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("out/ablation"))
    # After a positional, argparse takes no second list of them.
    split = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    o = a.parse_args(sys.argv[1:split])
    folder = o.folder
    folder.mkdir(parents=True, exist_ok=True)
    common = ["--db", o.db, *sys.argv[split + 1:]]
    importance, none = folder / "importance.gguf", folder / "none.gguf"
    microtome("profile", o.model, *common, "--imatrix", importance, "--force", "--json")
    flat(importance, none)
    uniform, chosen = folder / "uniform.json", folder / "chosen.json"
    microtome("plan", o.model, *common, "--type", o.type, "-o", uniform, "--force")
    size = json.loads(uniform.read_text())["predicted_bytes"]
    microtome("plan", o.model, *common, "--size", size, "-o", chosen, "--force")
    rows = [
        (f"all {o.type}, no weights", uniform, ["--imatrix", none]),
        ("importance of inputs", uniform, ["--imatrix", importance]),
        ("inputs and output gradients", uniform, []),
        ("and biases", uniform, ["--biases"]),
        ("and feedback, independent", uniform, ["--feedback", "independent"]),
        ("and feedback, sequential", uniform, ["--feedback", "sequential"]),
        ("and refinement, 80 steps", uniform, ["--refine", 80]),
        ("formats chosen", chosen, []),
        ("and feedback, independent", chosen, ["--feedback", "independent"]),
        ("and refinement, 80 steps", chosen, ["--refine", 80]),
        ("and both", chosen, ["--feedback", "independent", "--refine", 80]),
    ]
    names = [pathlib.Path(t).name for t in o.judge]
    print("| | bytes | " + " | ".join(f"{n}: perplexity | KL | same top token" for n in names) + " |")
    print("|---" * (2 + 3 * len(names)) + "|")
    for n, (name, plan, options) in enumerate(rows):
        target = folder / f"{n}.gguf"

        def cut(plan=plan, options=options, target=target):
            settings = common if "--imatrix" not in options else []
            microtome("cut", o.model, plan, *settings, *options, "-o", target, "--force",
                      "--no-proof", "--json")
            found = []
            for text in o.judge:
                found.append(json.loads(microtome("eval", target, "--against", o.model, "--text",
                                                  text, "--windows", o.windows, "--json")))
            return found

        judged = kept(folder / f"{n}.json", cut)
        cells = []
        for r in judged:
            kl = r["kl"]["mean"]
            cells.append(f"{r['perplexity']['value']:.2f} | {kl['value']:.4f} ± "
                         f"{kl['standard_error']:.4f} | {100 * r['same_top']['value']:.1f} %")
        print(f"| {name} | {target.stat().st_size:,} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
