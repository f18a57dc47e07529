"""Writes or compares raw logits: f32 little-endian [windows, n_ctx, n_vocab], every position.

usage: logits.py dump MODEL.gguf --text F --windows N [--ctx 512] [--engine E] -o OUT.f32
       logits.py compare A.f32 B.f32 --vocab N      (what `microtome eval --logits` wrote, say)
"""
import argparse
import json

import numpy as np

from engines import ENGINES
from judge import log_softmax, windows


def dump(model, text, n_windows, n_ctx, engine, out):
    with ENGINES[engine](model, n_ctx) as e, open(out, "wb") as f:
        rows = windows(e, text, n_ctx, n_windows)
        for ids in rows:
            f.write(e.logits(ids).astype("<f4").tobytes())
        return {"windows": len(rows), "n_ctx": n_ctx, "n_vocab": e.n_vocab}


def compare(a, b, n_vocab):
    """Largest and root mean square distance, and KL(a || b), row by row."""
    x, y = (np.memmap(p, "<f4", "r") for p in (a, b))
    if x.size != y.size or x.size % n_vocab:
        raise SystemExit(f"{a} has {x.size} values, {b} {y.size}: not the same rows of {n_vocab}")
    x, y = x.reshape(-1, n_vocab), y.reshape(-1, n_vocab)
    largest, where, squares, kl, same = 0.0, 0, 0.0, [], []
    for i in range(0, len(x), 32):
        d = np.abs(x[i:i + 32].astype(np.float64) - y[i:i + 32])
        if not d.max() <= largest:  # a NaN counts as the largest
            largest, where = float(d.max()), i + int(d.max(-1).argmax())
        squares += float((d * d).sum())
        p, q = (log_softmax(m[i:i + 32].astype(np.float64)) for m in (x, y))
        kl.extend((np.exp(p) * (p - q)).sum(-1))
        same.extend(p.argmax(-1) == q.argmax(-1))
    return {"rows": len(x), "max_abs": largest, "at_row": where, "rms": (squares / x.size) ** 0.5,
            "kl_mean": float(np.mean(kl)), "kl_max": float(np.max(kl)),
            "same_top": float(np.mean(same))}


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    sub = a.add_subparsers(dest="what", required=True)
    d = sub.add_parser("dump")
    d.add_argument("model")
    d.add_argument("--text", required=True)
    d.add_argument("--windows", type=int, default=1)
    d.add_argument("--ctx", type=int, default=512)
    d.add_argument("--engine", choices=ENGINES, default="upstream")
    d.add_argument("-o", "--out", required=True)
    c = sub.add_parser("compare")
    c.add_argument("a")
    c.add_argument("b")
    c.add_argument("--vocab", type=int, required=True)
    o = a.parse_args()
    if o.what == "dump":
        with open(o.text, "rb") as f:
            print(json.dumps(dump(o.model, f.read(), o.windows, o.ctx, o.engine, o.out)))
    else:
        print(json.dumps(compare(o.a, o.b, o.vocab), indent=1))


if __name__ == "__main__":
    main()
