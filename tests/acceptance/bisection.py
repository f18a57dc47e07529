"""`compress --max-kl` beside a bisection over sizes with `compress --size`.

Both judge by the mean KL on the windows set aside for the proof, without refinement unless an option
says otherwise. The bisection ends when its two sizes are within half a per cent.

usage: bisection.py MODEL.gguf --db MEASUREMENTS.db [--max-kl 0.02] [-- OPTIONS of compress]
Prints a line a file and one JSON object at the end; exits with 1 where the files' bytes differ by
more than two per cent.
"""
import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

from acceptance import ROOT


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    a.add_argument("model")
    a.add_argument("--db", required=True)
    a.add_argument("--max-kl", type=float, default=0.02)
    a.add_argument("options", nargs="*", help="of compress, after --")
    o = a.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        target = pathlib.Path(folder) / "cut.gguf"

        def compress(*goal):
            p = subprocess.run(
                [str(ROOT / "build/microtome"), "compress", o.model, *map(str, goal), "-o",
                 str(target), "--db", o.db, "--json", "--no-html", "--force", "--refine", "0",
                 *o.options], capture_output=True, text=True)
            if p.returncode not in (0, 1):
                raise SystemExit(f"{goal}: {p.stderr}")
            kl = json.loads(p.stdout)["comparisons"][0]["kl_mean"]["value"]
            size = target.stat().st_size
            print(f"{goal[0]} {goal[1]:>12} {size:12,} bytes  KL {kl:.5f}", flush=True)
            return size, kl

        searched, searched_kl = compress("--max-kl", o.max_kl)
        low, high = 0, pathlib.Path(o.model).stat().st_size
        # From 15 % on either side of what the search found; these ends are checked as well.
        at, best = int(searched * 0.85), None
        while high - low > 0.005 * high:
            size, kl = compress("--size", at)
            if kl <= o.max_kl:
                best, high = (size, kl), min(size, at)
            else:
                low = at
            if best is None and low < 1.15 * searched < high:
                at = int(searched * 1.15)
            else:
                at = (low + high) // 2 if low else int(high * 0.9)
    if best is None:
        raise SystemExit("no size tried keeps the bound")
    apart = searched / best[0] - 1
    print(json.dumps({"max_kl": o.max_kl, "search_bytes": searched, "search_kl": searched_kl,
                      "bisection_bytes": best[0], "bisection_kl": best[1], "apart": apart}))
    return int(abs(apart) > 0.02)


if __name__ == "__main__":
    sys.exit(main())
