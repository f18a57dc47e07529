"""Judges GGUF files against an original with an engine that is not ours.

Perplexity as llama.cpp's perplexity tool defines it: the text is tokenized at once, cut into windows
of n_ctx tokens without overlap, the first token of each replaced by BOS where the model asks for one,
and the second half of each window scored (of 512: positions 256..510 predict 257..511). KL is
KL(base || file) over the whole vocabulary at those positions, in nats; `same_top` the share of them
where both rank the same token first. Standard errors are over tokens for the logarithm of the
perplexity, over tokens for the mean KL, as that tool gives them.

All models see one window before the next is begun: memory is one window of logits, whatever the
length of the text.

usage: judge.py --text F [--windows N] [--ctx 512] [--engine upstream|ik] [--base BASE.gguf] FILE...
Prints one JSON object.
"""
import argparse
import json
import math
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from engines import ENGINES


ROWS = 16  # at a time: few enough for a core's cache
POOL = ThreadPoolExecutor(os.cpu_count())  # numpy lets go of the interpreter's lock in its loops


def log_softmax(x):
    """Of rows, in place; of f32 with sums in f64: right to 2e-6 where a token has e^-30."""
    x -= x.max(-1, keepdims=True)
    x -= np.log(np.exp(x).sum(-1, keepdims=True, dtype=np.float64)).astype(x.dtype)
    return x


class Tally:
    """What one file scored so far."""

    def __init__(self, path):
        self.path = path
        self.nll, self.kl, self.same, self.dp = [], [], [], []
        self.by_window = []

    def add(self, logits, base, wanted):
        """logits [n, n_vocab]; base: what the original's add gave, or None; wanted [n] the tokens
        that follow. Returns the log-probabilities, which take the place of the logits."""

        def score(start):
            p, true = logits[start:start + ROWS], wanted[start:start + ROWS]
            rows = np.arange(len(p))
            log_softmax(p)
            nll = -p[rows, true].astype(np.float64)
            if base is None:
                return nll, [], [], []
            q = base[start:start + ROWS]
            return (nll, (np.exp(q) * (q - p)).sum(-1, dtype=np.float64),
                    q.argmax(-1) == p.argmax(-1),
                    np.exp(-nll) - np.exp(q[rows, true].astype(np.float64)))

        start = len(self.kl)
        for nll, kl, same, dp in POOL.map(score, range(0, len(logits), ROWS)):
            self.nll.extend(nll)
            self.kl.extend(kl)
            self.same.extend(same)
            self.dp.extend(dp)
        if base is not None:
            self.by_window.append(float(np.mean(self.kl[start:])))
        return logits

    def result(self):
        nll = np.array(self.nll)
        out = {"file": self.path, "bytes": os.path.getsize(self.path), "tokens": len(nll),
               "perplexity": math.exp(nll.mean()),
               "perplexity_error": math.exp(nll.mean()) * nll.std() / math.sqrt(len(nll) - 1)}
        if self.kl:
            kl = np.array(self.kl)
            out |= {"kl_mean": kl.mean(), "kl_error": kl.std() / math.sqrt(len(kl) - 1),
                    "kl_median": np.median(kl), "kl_p99": np.quantile(kl, 0.99), "kl_max": kl.max(),
                    "same_top": float(np.mean(self.same)), "dp_mean": float(np.mean(self.dp)),
                    "dp_rms": float(np.sqrt(np.mean(np.square(self.dp)))),
                    "kl_by_window": self.by_window}
        return {k: float(v) if isinstance(v, np.floating) else v for k, v in out.items()}


def windows(engine, text, n_ctx, n_windows):
    """Token ids [n_windows, n_ctx], BOS where the model asks for one."""
    ids = engine.tokenize(text)
    have = len(ids) // n_ctx
    if have < 1:
        raise SystemExit(f"the text has {len(ids)} tokens, a window needs {n_ctx}")
    n = min(have, n_windows) if n_windows else have
    out = ids[:n * n_ctx].reshape(n, n_ctx).copy()
    if engine.adds_bos:
        out[:, 0] = engine.bos
    return out


def judge(files, text, base=None, n_windows=0, n_ctx=512, engine="upstream", n_threads=2,
          progress=lambda *_: None):
    """Results of `files` (against `base`, itself scored first where it is given)."""
    paths = ([base] if base else []) + list(files)
    make = ENGINES[engine]
    engines = [make(p, n_ctx, n_threads) for p in paths]
    try:
        rows = windows(engines[0], text, n_ctx, n_windows)
        first = n_ctx // 2
        tallies = [Tally(p) for p in paths]
        started = time.time()
        for i, ids in enumerate(rows):
            original = None
            for e, tally in zip(engines, tallies):
                scores = e.logits(ids, first)[:-1]
                kept = tally.add(scores, original, ids[first + 1:])
                if base and original is None:
                    original = kept
            progress(i + 1, len(rows), time.time() - started)
        return {"engine": make.version(), "n_ctx": n_ctx, "windows": len(rows),
                "seconds": round(time.time() - started, 1),
                "results": [t.result() for t in tallies]}
    finally:
        for e in engines:
            e.close()


def main():
    a = argparse.ArgumentParser(description="Judges GGUF files with an engine that is not ours.")
    a.add_argument("files", nargs="+")
    a.add_argument("--base")
    a.add_argument("--text", required=True)
    a.add_argument("--windows", type=int, default=0, help="0: all")
    a.add_argument("--ctx", type=int, default=512)
    a.add_argument("--engine", choices=ENGINES, default="upstream")
    a.add_argument("--threads", type=int, default=2)
    o = a.parse_args()
    with open(o.text, "rb") as f:
        text = f.read()

    def progress(done, of, seconds):
        print(f"\r{done}/{of} windows, {seconds / done * (of - done):.0f} s left ", end="",
              file=sys.stderr, flush=True)

    out = judge(o.files, text, o.base, o.windows, o.ctx, o.engine, o.threads, progress)
    print(file=sys.stderr)
    print(json.dumps(out, indent=1))


if __name__ == "__main__":
    main()
