"""The acceptance run: microtome's files judged by other people's engines, beside their own files.

For each model: the original decoded to F32 by gguf-py; the engine's perplexity of it beside the known
one; our exact logits beside the engine's; `microtome compress` at each size from nothing (time, peak
anonymous memory); every file judged by unmodified llama.cpp; our own `eval` beside the judge; and no
peer file of the same or fewer bytes may be better. What is done is kept in out/acceptance and not
done again.

usage: acceptance.py --text wiki.test.raw [--only smol,gemma,qwen] [--sizes 75MB,65MB] [--windows N]
                     [--second-opinion]
The text is the raw test set of WikiText-2 (SHA-256 173c87a5...dd08).
"""
import argparse
import hashlib
import json
import pathlib
import subprocess
import sys
import threading
import time

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
OUT = ROOT / "out" / "acceptance"
MODELS = {
    "smol": ("SmolLM2-135M-Instruct.Q4_1.gguf", ["95MB", "85MB", "75MB", "65MB", "55MB"], 5 * 60, 2.0),
    "gemma": ("gemma-3-270m.Q4_K_M.gguf", ["220MB", "180MB", "150MB", "120MB", "95MB"], None, None),
    "qwen": ("Qwen2.5-Coder-1.5B-Instruct.Q4_K_M.gguf", ["980MB", "900MB", "760MB", "700MB", "600MB"],
             45 * 60, 5.0),
}
# What the formats of today's readers cannot reach takes all formats. The engine computes some of them
# in plain C, twenty times as slowly, and no peer file is as small: fewer windows.
FEW_WINDOWS = 8
ALL_TYPES = {"smol": ["65MB", "55MB"], "gemma": ["120MB", "95MB"], "qwen": []}
OWN_WINDOWS = {"smol": 8, "gemma": 4, "qwen": 2}  # that our eval scores beside the judge
checks = []


def check(what, holds, detail):
    checks.append({"check": what, "holds": bool(holds), "detail": detail})
    print(f"  {'ok  ' if holds else 'FAIL'} {what}: {detail}", flush=True)


def run(command, log):
    """Runs, gives (exit code, standard output, seconds, peak of anonymous memory in bytes)."""
    with open(log, "w") as err:
        started = time.time()
        p = subprocess.Popen([str(c) for c in command], stdout=subprocess.PIPE, stderr=err, text=True)
        peak = 0

        def watch():
            nonlocal peak
            while p.poll() is None:
                try:
                    for line in open(f"/proc/{p.pid}/status"):
                        if line.startswith("RssAnon:"):
                            peak = max(peak, int(line.split()[1]) * 1024)
                except OSError:
                    pass
                time.sleep(0.05)

        t = threading.Thread(target=watch)
        t.start()
        out = p.stdout.read()
        p.wait()
        t.join()
    return p.returncode, out, time.time() - started, peak


def python(script, *arguments):
    """One judge, in a process of its own: an engine that aborts must not take the run with it."""
    p = subprocess.run([sys.executable, str(HERE / script), *map(str, arguments)], capture_output=True,
                       text=True)
    if p.returncode != 0:
        raise RuntimeError(f"{script} failed ({p.returncode}): {p.stderr[-500:]}")
    return json.loads(p.stdout) if p.stdout.strip() else None


def kept(path, make):
    if path.exists():
        return json.loads(path.read_text())
    value = make()
    path.write_text(json.dumps(value, indent=1))
    return value


def accept(name, options, peers):
    file, sizes, max_seconds, max_gb = MODELS[name]
    sizes = options.sizes.split(",") if options.sizes else sizes
    source, folder = ROOT / "models" / file, OUT / name
    folder.mkdir(parents=True, exist_ok=True)
    n_windows = options.windows or peers["windows"]
    print(f"{name}: {file}, {n_windows} windows", flush=True)

    base = folder / "original-f32.gguf"
    if not base.exists():
        python("decode_f32.py", source, base)

    made = {}
    for size in sizes:
        target = folder / f"{size}.gguf"

        def compress(size=size, target=target):
            # The first size starts from nothing; the others go on from its measurements.
            db = folder / "measurements.db"
            fresh = not made
            if fresh:
                for end in ("", "-wal", "-shm"):
                    pathlib.Path(f"{db}{end}").unlink(missing_ok=True)
            target.unlink(missing_ok=True)
            command = [ROOT / "build/microtome", "compress", source, "--size", size, "-o", target, "--db",
                       db, "--json"]
            if size in ALL_TYPES[name]:
                command += ["--types", "all"]
            code, out, seconds, peak = run(command, folder / f"{size}.log")
            if code not in (0, 1):
                raise RuntimeError(f"compress --size {size} ended with {code}; see {folder}/{size}.log")
            (folder / f"{size}.report.json").write_text(out)
            return {"seconds": seconds, "peak_anonymous": peak, "bytes": target.stat().st_size,
                    "from_nothing": fresh}

        made[size] = kept(folder / f"{size}.made.json", compress)
        m = made[size]
        limit = int(float(size[:-2]) * 1e6)
        check(f"{name} {size} fits", m["bytes"] <= limit, f"{m['bytes']} bytes")
        if max_seconds and m["from_nothing"]:
            check(f"{name} {size} time", m["seconds"] <= max_seconds,
                  f"{m['seconds']:.0f} s of {max_seconds}")
            check(f"{name} {size} memory", m["peak_anonymous"] <= max_gb * 1e9,
                  f"{m['peak_anonymous'] / 1e9:.2f} GB of {max_gb}")

    def judge(of, windows):
        files = [folder / f"{size}.gguf" for size in of]
        stamp = hashlib.sha256(f"{windows} {of} {[f.stat().st_mtime_ns for f in files]}".encode())
        return kept(folder / f"judged-{stamp.hexdigest()[:12]}.json", lambda: python(
            "judge.py", "--text", options.text, "--windows", windows, "--base", base, *files))

    slow = [s for s in sizes if s in ALL_TYPES[name]]
    judged = {}
    for of, windows in (([s for s in sizes if s not in slow], n_windows),
                        (slow, min(n_windows, FEW_WINDOWS))):
        if of:
            of_these = judge(of, windows)
            judged |= {"original": of_these["results"][0]} if "original" not in judged else {}
            judged |= dict(zip(of, of_these["results"][1:]))
    original, cuts = judged["original"], [judged[s] for s in sizes]
    files = [folder / f"{size}.gguf" for size in sizes]
    n_own = min(n_windows, OWN_WINDOWS[name])
    if n_windows == peers["windows"]:
        check(f"{name} original", abs(original["perplexity"] - peers["base"]) < 0.03,
              f"perplexity {original['perplexity']:.3f}, known {peers['base']}")
    for size, cut in zip(sizes, cuts):
        rivals = [p for p in peers["files"] if p["bytes"] <= cut["bytes"]]
        best_kl = min(rivals, key=lambda p: p["kl"], default=None)
        best_ppl = min((p for p in rivals if p["perplexity"]), key=lambda p: p["perplexity"],
                       default=None)
        beside = "no peer file is as small"
        if best_kl:
            beside = f"best peer KL {best_kl['kl']}" + (
                f", perplexity {best_ppl['perplexity']}" if best_ppl else "")
        check(f"{name} {size} against the peers",
              (not best_kl or cut["kl_mean"] <= best_kl["kl"])
              and (not best_ppl or cut["perplexity"] <= best_ppl["perplexity"]),
              f"KL {cut['kl_mean']:.4f}, perplexity {cut['perplexity']:.2f}, same top "
              f"{cut['same_top']:.3f} on {len(cut['kl_by_window'])} windows; {beside}")
        code, out, seconds, _ = run(
            [ROOT / "build/microtome", "eval", folder / f"{size}.gguf", "--against", base, "--text",
             options.text, "--windows", n_own, "--json"], folder / f"{size}.eval.log")
        if code != 0:
            check(f"{name} {size} own eval", False, f"ended with {code}")
            continue
        ours = json.loads(out)
        ours = (ours.get("text") or ours)["kl"]["mean"]["value"]
        theirs = sum(cut["kl_by_window"][:n_own]) / n_own
        # The engine rounds activations of quantised files to 8 bits; we do not.
        check(f"{name} {size} own eval", abs(ours - theirs) < 0.02 + 0.1 * theirs,
              f"KL {ours:.4f}, the engine's {theirs:.4f} on the same windows")

    def logits():
        result = {}
        vocabulary = None
        for label, model in [("F32", base), *zip(sizes, files)]:
            a, b = folder / "engine.f32", folder / "ours.f32"
            d = python("logits.py", "dump", model, "--text", options.text, "--windows", 1, "-o", a)
            vocabulary = d["n_vocab"]
            code, _, _, _ = run([ROOT / "build/microtome", "eval", model, "--text", options.text,
                                 "--windows", 1, "--logits", b, "--force"], folder / "logits.log")
            if code != 0:
                raise RuntimeError(f"eval --logits ended with {code}; see {folder}/logits.log")
            result[label] = python("logits.py", "compare", a, b, "--vocab", vocabulary)
            a.unlink()
            b.unlink()
        return result

    stamp = hashlib.sha256(str([f.stat().st_mtime_ns for f in files]).encode()).hexdigest()
    distance = kept(folder / f"logits-{stamp[:12]}.json", logits)
    # llama.cpp's GELU is a table in f16: put into our forward pass, such a table alone moves gemma's
    # logits by up to 0.083, at the very row where the engine's are 0.083 away.
    bound = 0.1 if name == "gemma" else 1e-3
    check(f"{name} exact logits", distance["F32"]["max_abs"] < bound,
          f"apart by {distance['F32']['max_abs']:.6f} at most, rms {distance['F32']['rms']:.6f}")
    for size in sizes:
        quantised = distance[size]
        check(f"{name} {size} logits", quantised["kl_mean"] < 0.02,
              f"apart by {quantised['max_abs']:.3f} at most, KL {quantised['kl_mean']:.5f}: the "
              "engine's own rounding of activations")

    if options.second_opinion:
        try:
            second = python("judge.py", "--engine", "ik", "--text", options.text, "--windows",
                            min(n_windows, 8), "--base", base, *files)
            for size, cut in zip(sizes, second["results"][1:]):
                print(f"       ik on {size}: KL {cut['kl_mean']:.4f}, perplexity {cut['perplexity']:.2f}")
        except RuntimeError as e:
            print(f"       ik: {e}")
    return {"model": name, "made": made, "judged": judged, "logits": distance}


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    a.add_argument("--text", required=True)
    a.add_argument("--only", default=",".join(MODELS))
    a.add_argument("--sizes", help="instead of the usual ones")
    a.add_argument("--windows", type=int, default=0, help="instead of as many as the peers' figures")
    a.add_argument("--second-opinion", action="store_true", help="ask ik_llama.cpp too")
    options = a.parse_args()
    digest = hashlib.sha256(pathlib.Path(options.text).read_bytes()).hexdigest()
    if not (digest.startswith("173c87a5") and digest.endswith("dd08")):
        sys.exit(f"{options.text}: not the raw test set of WikiText-2 (SHA-256 {digest})")
    peers = json.loads((HERE / "peers.json").read_text())
    OUT.mkdir(parents=True, exist_ok=True)
    results = []
    for name in options.only.split(","):
        try:
            results.append(accept(name, options, peers[name]))
        except RuntimeError as e:
            check(name, False, str(e))
    (OUT / "results.json").write_text(json.dumps({"checks": checks, "results": results}, indent=1))
    failed = [c for c in checks if not c["holds"]]
    print(f"{len(checks) - len(failed)} passed, {len(failed)} failed")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
