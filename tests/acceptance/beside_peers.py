"""microtome's files of exactly the peers' sizes, judged on several texts.

For each of the peers' files that is smaller than the source: `microtome compress --size BYTES` with
the options given, all judged by unmodified llama.cpp against the decoded original; a row a file with
the ratio to the peer's KL. On a text other than WikiText-2 the peers' figures are not known: their
column stays empty. What is done is kept in out/acceptance/MODEL/LABEL.

usage: beside_peers.py --label refined --text wiki.test.raw [--text code.txt] [--only smol,gemma]
                       [--sizes 77571328,72802048] [--windows N] [-- OPTIONS of compress]
Prints Markdown; the first text has to be the raw test set of WikiText-2.
"""
import argparse
import hashlib
import json
import pathlib
import sys

from acceptance import HERE, MODELS, OUT, ROOT, kept, python, run


def files_of(name, sizes, label, compress_options):
    """Makes what is missing; gives (bytes asked, file, what was noted of its making)."""
    source = ROOT / "models" / MODELS[name][0]
    folder = OUT / name / label
    folder.mkdir(parents=True, exist_ok=True)
    for size in sizes:
        target = folder / f"{size}.gguf"

        def compress(size=size, target=target):
            command = [ROOT / "build/microtome", "compress", source, "--size", size, "-o", target,
                       "--db", OUT / name / "beside-peers.db", "--json", "--no-html", "--force",
                       *compress_options]
            code, out, seconds, peak = run(command, folder / f"{size}.log")
            if code not in (0, 1):
                raise RuntimeError(f"{command} ended with {code}; see {folder}/{size}.log")
            report = json.loads(out)
            return {"seconds": seconds, "peak_anonymous": peak, "bytes": target.stat().st_size,
                    "predicted_kl": report["predicted_kl"],
                    "own_kl": report["comparisons"][0]["kl_mean"]["value"]}

        yield size, target, kept(folder / f"{size}.made.json", compress)


def judged(text, windows, base, files):
    stamp = f"{text} {windows} {[(str(f), f.stat().st_mtime_ns) for f in files]}"
    stamp = hashlib.sha256(stamp.encode()).hexdigest()[:12]
    return kept(files[0].parent / f"judged-{stamp}.json", lambda: python(
        "judge.py", "--text", text, "--windows", windows, "--base", base, *files))["results"]


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    a.add_argument("--label", required=True)
    a.add_argument("--text", action="append", required=True)
    a.add_argument("--only", default="smol,gemma")
    a.add_argument("--sizes", help="bytes, instead of the peers'")
    a.add_argument("--windows", type=int, default=0, help="instead of as many as the peers' figures")
    a.add_argument("--not-judged", action="store_true", help="only make the files")
    a.add_argument("options", nargs="*", help="of compress, after --")
    o = a.parse_args()
    all_peers = json.loads((HERE / "peers.json").read_text())
    for name in o.only.split(","):
        peers = all_peers[name]
        source = ROOT / "models" / MODELS[name][0]
        best = {}  # the peers' lowest KL of at most so many bytes
        for p in sorted(peers["files"], key=lambda p: p["kl"], reverse=True):
            best[p["bytes"]] = p
        sizes = ([int(s) for s in o.sizes.split(",")] if o.sizes else
                 sorted((b for b in best if b < source.stat().st_size), reverse=True))
        made = list(files_of(name, sizes, o.label, o.options))
        if o.not_judged:
            continue
        base = OUT / name / "original-f32.gguf"
        if not base.exists():
            python("decode_f32.py", source, base)
        for n, text in enumerate(o.text):
            windows = o.windows or peers["windows"]
            results = judged(text, windows, base, [file for _, file, _ in made])
            print(f"\n{name}, {o.label} ({' '.join(o.options)}), {pathlib.Path(text).name}, "
                  f"{windows} windows, base perplexity {results[0]['perplexity']:.2f}\n")
            print("| bytes | perplexity | mean KL | same top token | own text | peer of that size "
                  "| perplexity | mean KL | ratio |\n|---|---|---|---|---|---|---|---|---|")
            for (size, file, m), r in zip(made, results[1:]):
                peer = best.get(size) if n == 0 else None
                beside = (f"{peer['name']} | {peer['perplexity'] or ''} | {peer['kl']} | "
                          f"{r['kl_mean'] / peer['kl']:.2f}" if peer else " | | | ")
                print(f"| {m['bytes']:,} | {r['perplexity']:.2f} | {r['kl_mean']:.4f} ± "
                      f"{r['kl_error']:.4f} | {100 * r['same_top']:.1f} % | {m['own_kl']:.4f} | "
                      f"{beside} |", flush=True)


if __name__ == "__main__":
    main()
