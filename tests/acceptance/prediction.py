"""Prediction against proof: random plans of one model, each cut and measured.

Every place of a plan takes a random format among those that the planner offers it; each plan draws
its own taste for formats, so that plans differ in size and loss. `microtome cut` predicts an edited
plan again and proves it on the windows set aside.

usage: prediction.py MODEL.gguf --db MEASUREMENTS.db [--plans 50] [-- OPTIONS of cut]
Prints a line a plan, then Spearman's rank correlation and the ratios' spread; one JSON object at the
end. What is measured is kept in the database: the same seed goes on where it was.
"""
import argparse
import json
import pathlib
import subprocess
import tempfile

import numpy as np

from acceptance import ROOT


def microtome(*arguments):
    p = subprocess.run([str(ROOT / "build/microtome"), *map(str, arguments)], capture_output=True,
                       text=True)
    if p.returncode:
        raise SystemExit(f"{arguments}: {p.stderr}")
    return p.stdout


def ranks(values):
    order = np.argsort(values)
    result = np.empty(len(values))
    result[order] = np.arange(len(values))
    return result


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    a.add_argument("model")
    a.add_argument("--db", required=True)
    a.add_argument("--plans", type=int, default=50)
    a.add_argument("--seed", type=int, default=1)
    a.add_argument("options", nargs="*", help="of cut, after --")
    o = a.parse_args()
    random = np.random.default_rng(o.seed)
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        profile = json.loads(microtome("profile", o.model, "--db", o.db, "--json", *o.options))
        plan = json.loads(microtome("plan", o.model, "--db", o.db, "--bpw", 10, *o.options))
        offered = {p["place"]: list(p["loss"]) for p in profile["places"]}
        formats = sorted({d for options in offered.values() for d in options})
        predicted, measured = [], []
        for n in range(o.plans):
            taste = dict(zip(formats, random.dirichlet(np.full(len(formats), 0.5))))
            for place in plan["places"]:
                options = offered[place["place"]]
                weights = np.array([taste[d] + 1e-6 for d in options])
                place["dtype"] = options[random.choice(len(options), p=weights / weights.sum())]
                place.pop("keep", None)
            (folder / "plan.json").write_text(json.dumps(plan))
            r = json.loads(microtome("cut", o.model, folder / "plan.json", "--db", o.db, "-o",
                                     folder / "cut.gguf", "--force", "--json", *o.options))
            predicted.append(r["predicted_kl"])
            measured.append(r["measured"]["kl_mean"])
            print(f"{n + 1:3} {r['bytes']:12,} bytes  predicted {predicted[-1]:8.4f}  measured "
                  f"{measured[-1]:8.4f}", flush=True)
    ratio = np.array(measured) / np.array(predicted)
    print(json.dumps({"plans": o.plans,
                      "rank_correlation": np.corrcoef(ranks(predicted), ranks(measured))[0, 1],
                      "ratio_median": float(np.median(ratio)), "ratio_low": ratio.min(),
                      "ratio_high": ratio.max(), "predicted": predicted, "measured": measured}))


if __name__ == "__main__":
    main()
