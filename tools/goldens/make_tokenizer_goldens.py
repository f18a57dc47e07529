#!/usr/bin/env python3
"""Writes tests/golden/tokenizer_ids.json: the ids that reference tokenizers give for the texts of
tests/golden/tokenizer_texts.json, as their number and the SHA-256 of their bytes (i32, little
endian), once with special tokens taken as text and once as themselves.

GGUF models are asked through llama.cpp (package xllamacpp), MiniLM through `tokenizers`.

usage: make_tokenizer_goldens.py [--models FOLDER]   the ids, of the models that are there
       make_tokenizer_goldens.py --udhr FOLDER       the texts, from nltk_data's corpus udhr2
"""
import argparse
import ctypes as C
import hashlib
import json
import pathlib
import sys

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]
TEXTS = ROOT / "tests" / "golden" / "tokenizer_texts.json"
IDS = ROOT / "tests" / "golden" / "tokenizer_ids.json"
MODELS = {"smol": "SmolLM2-135M-Instruct.Q4_1.gguf", "gemma": "gemma-3-270m.Q4_K_M.gguf",
          "qwen": "Qwen2.5-Coder-1.5B-Instruct.Q4_K_M.gguf", "minilm": "all-MiniLM-L6-v2"}

OTHERS = {
    "empty": "",
    "spaces": "".join(f"{' ' * n}x" for n in range(1, 40)) + "   ",
    "space ends": " a \n b\n\nc \n\n d\t\te \t f\r\ng\r\rh \r\n \r\n i\n   \n\tj  ",
    "wide spaces": "a\u00a0b\u2003c\u3000d\u200be\u2028f\u202fg\u180eh\u0085i\u1680j\ufeffk",
    "tabs": "\n".join("\t" * n + "return" + "\t" * n for n in range(12)),
    "newlines": "".join("\n" * n + "." for n in range(20)),
    "emoji": "👨‍👩‍👧‍👦 👍🏽ok 🏳️‍🌈🇩🇪🇫🇷🇯🇵 1️⃣#️⃣ ❤️‍🔥😀😀😀 x🤷🏿‍♀️y ☺︎☺️ 🧑🏻‍🚀.🫠",
    "contractions": "I'm you're he's we'll they've I'd can't won't DON'T I'M YOU'RE He'S WE'LL I'VE I'D "
                    "'tis 'Twas rock'n'roll o'clock d'accord l\u2019homme don\u2019t ''s '' 'sx 'S's",
    "numbers": "0 1 12 123 1234 12345 123456 1234567 12345678 3.14159 1,000,000 1e-9 0x1F 2024-02-29 "
               "12:34:56 ½ ² ³ Ⅷ ٣٤٥ १२३ 一二三 １２３ 1st 2nd a1b22c333 -5 +6 50% $9.99 €100 №7",
    "punctuation": "!!! ... ?! (a)[b]{c}<d> «e» “f” ‘g’ —–- …… a/b\\c a_b __c__ @x #y $z %w ^v &u *t* `s` "
                   "~r~ |q| =p= +o+ ;; :: ,, ¿n? ¡m! 。、「」 ؟، a.b.c foo::bar->baz() x+=1; // **//",
    "case": "ABCdefGHI CamelCaseWords HTTPServer iPhone eBay McDonald's İstanbul ıI ΟΔΥΣΣΕΥΣ ǅ ß ẞ ﬁ ŉ",
    "accents": "e\u0301 é n\u0303 ñ A\u030a Å Å ệ e\u0323\u0302 q\u0323\u0307 ṩ Ἀχιλλεύς "
               "\u0301alone x\u0300\u0301\u0302\u0303\u0304 ЙЁйё กำ ที่",
    "scripts mixed": "abcабвגדهあア漢한ไทย ΑΒΓ ქართ አማርኛ ខ្មែរ မြန်မာ ᏣᎳᎩ ᚠᚢᚦ 𝕳𝖊𝖑𝖑𝖔 𝟘𝟙 𐍈𐎀 ｆｕｌｌ ﷺ ㎏ Ω",
    "private": "\ue000\uf8ff\U000f0000 \u00ad\u200d\u2060\ufffd\ufffe x\x01y\x1bz\x7f \u0378\U0001d2c0",
    "marks of space": "▁ ▁▁ a▁b ▁c Ġ Ċ ĠĠd Ġe ĉ",
    "byte names": "<0x00> <0x0A> <0x20> <0xE4><0xB8><0xAD> <0xff> <0xGG> <0x4>",
    "special": "<|im_start|>user\nhi<|im_end|>\n<|endoftext|><|fim_prefix|>a<|fim_suffix|>b<|fim_middle|>"
               "<s>x</s><unk><pad><bos><eos><start_of_turn>user\n y<end_of_turn>\n[CLS] z [SEP][MASK][UNK][PAD]"
               "<unused7><mask>[multimodal]<table><repo_name>r<file_sep>f <jupyter_code><|im_start|",
    "special near": "<|im_start|> <|im_end|>\n\n<|im_sta rt|> <|IM_START|> < |im_end|><|im_end|><|im_end|>a"
                    "<|im_end|> b[mask][CLS ]<b>bold</b><br><code>x</code></code>\n\n\n<h1> <eos ><eos>",
    "long word": "a" * 300 + " " + "ab" * 60 + " " + "é" * 100 + " " + "中" * 120 + " " + "x" * 99 + " " + "x" * 101,
    "repeats": "the the the " * 30 + "=" * 70 + "-" * 65 + "*" * 33 + "." * 129 + "/" * 17 + "ha" * 40,
    "base64": "TWljcm90b21lIGN1dHMgc2xpY2VzIHRoaW4gZW5vdWdoIHRvIGxvb2sgdGhyb3VnaC4gT25lIEMrKzIwIGxpYnJhcnk=",
    "url": "https://example.org/a/b.html?q=1&r=%20x#frag mailto:a.b+c@d-e.co.uk C:\\dir\\f.txt /usr/lib/x86_64/",
}
CODE = ["src/text/utf8.cpp", "tools/check_format.sh", "CMakeLists.txt"]


def write_texts(folder):
    texts = {}
    for path in sorted(folder.glob("*.txt")):
        raw = path.read_bytes()[:600]
        while raw[-1] & 0xC0 == 0x80:  # back to a whole character
            raw = raw[:-1]
        texts["udhr " + path.stem] = (raw[:-1] if raw[-1] >= 0xC0 else raw).decode()
    for name in CODE:
        texts["code " + pathlib.Path(name).name] = (ROOT / name).read_text()[:2500]
    texts["code python"] = pathlib.Path(__file__).read_text()[:2500]
    texts |= OTHERS
    TEXTS.write_text(json.dumps(texts, ensure_ascii=True, indent=0) + "\n")


def gguf_encoder(path):
    sys.path.insert(0, str(ROOT / "tests" / "acceptance"))
    from engines import Upstream
    engine = Upstream(path, n_ctx=32)

    def encode(text, special):
        raw = text.encode()
        out = (C.c_int32 * (len(raw) + 16))()
        n = engine._tokenize(engine._vocab, raw, len(raw), out, len(out), False, special)
        assert n >= 0
        return out[:n]
    return encode, engine.version()


def hf_encoder(path):
    import tokenizers
    t = tokenizers.Tokenizer.from_file(str(path / "tokenizer.json"))
    t.no_truncation()
    t.no_padding()

    def encode(text, special):
        t.encode_special_tokens = not special
        return t.encode(text, add_special_tokens=False).ids
    return encode, "tokenizers " + tokenizers.__version__


def digest(ids):
    return [len(ids), hashlib.sha256(np.array(ids, "<i4").tobytes()).hexdigest()]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", type=pathlib.Path, default=ROOT / "models")
    parser.add_argument("--udhr", type=pathlib.Path)
    options = parser.parse_args()
    if options.udhr:
        return write_texts(options.udhr)
    texts = json.loads(TEXTS.read_text())
    golden = json.loads(IDS.read_text()) if IDS.exists() else {}
    for name, file in MODELS.items():
        path = options.models / file
        if not path.exists():
            print(f"{path} is not there: {name} stays as it is")
            continue
        encode, by = hf_encoder(path) if name == "minilm" else gguf_encoder(path)
        golden[name] = {"file": file, "by": by, "ids": {}}
        for key, text in texts.items():
            plain, special = digest(encode(text, False)), digest(encode(text, True))
            golden[name]["ids"][key] = [plain] if plain == special else [plain, special]
    lines = ",\n".join(
        json.dumps(name) + ": " + json.dumps({k: v for k, v in m.items() if k != "ids"})[:-1] + ', "ids": {\n' +
        ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in m["ids"].items()) + "}}"
        for name, m in golden.items())
    IDS.write_text("{" + lines + "}\n")


if __name__ == "__main__":
    main()
