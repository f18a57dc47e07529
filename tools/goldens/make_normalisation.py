#!/usr/bin/env python3
"""Writes src/text/normalisation_table.cpp: what BERT's normalisation needs of Unicode.

The tables are those that the `tokenizers` library goes by, since models were trained on its output:
general categories of Unicode 8, canonical decompositions and lower case of today. Python's
unicodedata has the newest categories only, so characters that came or changed after Unicode 8 are
listed here. Python 3.11 (Unicode 14) gives the committed file.

usage: make_normalisation.py            writes the file
       make_normalisation.py --check    compares with the `tokenizers` package, character by character
"""
import pathlib
import sys
import unicodedata

ROOT = pathlib.Path(__file__).resolve().parents[2]

# Punctuation, nonspacing marks and format characters that Unicode 8 did not have.
LATER = """
  061d 0890-0891 0898-089f 08ca-08e2 07fd 09fd 09fe 0a76 0afa-0aff 0b55 0c04 0c3c 0c77 0c84 0d00
  0d3b-0d3c 0d81 0eba 180f 1885-1886 1abf-1ace 1b7d-1b7e 1df6-1dfb 2e43-2e4f 2e52-2e5d a82c a8c5
  a8ff a9bd 10d24-10d27 10eab-10ead 10f46-10f50 10f55-10f59 10f82-10f89 11070 11073-11074 110c2
  110cd 111cf 1123e 1133b 11438-11446 1144b-1144f 1145a-1145e 11660-1166c 116b9 1182f-1183b
  1193b-11946 119d4-119e2 11a01-11a46 11a47 11a51-11a9c 11a9e-11aa2 11c30-11c45 11c70-11cb6
  11d31-11d47 11d90-11d97 11ef3-11ef8 11fff 12ff1-12ff2 13430-13438 16e97-16e9a 16f4f 16fe2-16fe4
  1cf00-1cf46 1e000-1e02a 1e130-1e136 1e2ae 1e2ec-1e2ef 1e944-1e94a 1e95e-1e95f"""
CHANGED = {0x166D: "Po", 0x1734: "Mn", 0x111C9: "Po"}  # as they were in Unicode 8
NOT_DECOMPOSED = {0x11938}  # Unicode 13
# Capitals that Unicode 14 does not have, by the distance of their small letters.
LATER_CAPITALS = [(0x1C89, 0x1C89, 1), (0xA7CB, 0xA7CB, 0x264 - 0xA7CB), (0xA7CC, 0xA7CC, 1),
                  (0xA7CE, 0xA7CE, 1), (0xA7D2, 0xA7D2, 1), (0xA7D4, 0xA7D4, 1), (0xA7DA, 0xA7DA, 1),
                  (0xA7DC, 0xA7DC, 0x19B - 0xA7DC), (0x10D50, 0x10D65, 32), (0x16EA0, 0x16EB8, 27)]
# White_Space of Unicode without the control characters among it, which are dropped.
SPACES = {9, 10, 13, 32, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F, 0x3000}
HANGUL = range(0xAC00, 0xD7A4)  # decomposed by arithmetic
CHARACTERS = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]


def parse_ranges(text):
    out = set()
    for item in text.split():
        first, _, last = item.partition("-")
        out.update(range(int(first, 16), int(last or first, 16) + 1))
    return out


later = parse_ranges(LATER)


def category(c):
    return CHANGED.get(c) or ("Cn" if c in later else unicodedata.category(chr(c)))


def kind(c):
    if c in SPACES:
        return "Space"
    k = category(c)
    if c == 0xFFFD or k in ("Cc", "Cf", "Co"):
        return "Dropped"
    if k == "Mn":
        return "Mark"
    if k[0] == "P" or (c < 128 and k[0] == "S"):
        return "Punctuation"
    return None


def stripped(c):
    """Canonical decomposition without nonspacing marks."""
    if c in NOT_DECOMPOSED:
        return (c,)
    return tuple(ord(x) for x in unicodedata.normalize("NFD", chr(c)) if category(ord(x)) != "Mn")


def lowered(c):
    for first, last, distance in LATER_CAPITALS:
        if first <= c <= last:
            return (c + distance,)
    return tuple(map(ord, chr(c).lower()))


def kind_ranges():
    out = []
    for c in CHARACTERS:
        k = kind(c)
        if not k:
            continue
        if out and out[-1][1] == c - 1 and out[-1][2] == k:
            out[-1][1] = c
        else:
            out.append([c, c, k])
    return out


def shift_ranges(mapping):
    """[first, last, step, distance]: runs of characters, every one or every other, equally moved."""
    out = []
    for c, (to,) in sorted(mapping.items()):
        last = out[-1] if out else None
        if last and to - c == last[3] and c - last[1] in (1, 2) and \
                (last[0] == last[1] or c - last[1] == last[2]):
            last[1], last[2] = c, c - last[1]
        else:
            out.append([c, c, 1, to - c])
    return out


def lists(mapping):
    """Runs [first, count, where] in one list of values, 0 for characters that stay themselves."""
    runs, values = [], []
    for c, (to,) in sorted(mapping.items()):
        gap = c - runs[-1][0] - runs[-1][1] if runs else 99
        if gap > 4:
            runs.append([c, 0, len(values)])
            gap = 0
        values += [0] * gap + [to]
        runs[-1][1] += gap + 1
    return runs, values


def table(lines, opening, items):
    lines.append(opening)
    line = "   "
    for item in items:
        if len(line) + 1 + len(item) + 1 > 100:
            lines.append(line)
            line = "   "
        line += f" {item},"
    lines += [line, "};"]


def write(path):
    strip = {c: stripped(c) for c in CHARACTERS if c not in HANGUL}
    strip = {c: to for c, to in strip.items() if to != (c,) and category(c) != "Mn"}
    lower = {c: lowered(c) for c in CHARACTERS if lowered(c) != (c,)}
    lower_many = {c: to for c, to in lower.items() if len(to) != 1}
    assert lower_many == {0x130: (0x69, 0x307)}, lower_many  # its place in the code is a rule
    del lower[0x130]
    assert max(map(len, strip.values())) <= 3
    lines = ["// Written by tools/goldens/make_normalisation.py; see there for the versions of Unicode.",
             "// clang-format off", '#include "text/normalisation_table.h"', "",
             "namespace mt::normalisation {", "namespace {", ""]
    table(lines, "constexpr KindRange kKinds[] = {",
          [f"{{0x{a:x}, 0x{b:x}, CharKind::{k}}}" for a, b, k in kind_ranges()])
    lines.append("")
    table(lines, "constexpr ShiftRange kLower[] = {",
          [f"{{0x{a:x}, 0x{b:x}, {s}, {d}}}" for a, b, s, d in shift_ranges(lower)])
    single = {c: to for c, to in strip.items() if len(to) == 1}
    lines.append("")
    runs, values = lists(single)
    table(lines, "constexpr BaseRun kBaseRuns[] = {", [f"{{0x{a:x}, {n}, {at}}}" for a, n, at in runs])
    lines.append("")
    table(lines, "constexpr uint32_t kBases[] = {", [f"0x{v:x}" if v else "0" for v in values])
    lines.append("")
    table(lines, "constexpr Parts kParts[] = {",
          ["{" + ", ".join(f"0x{x:x}" for x in (c, *to)) + "}"
           for c, to in sorted(strip.items()) if len(to) != 1])
    lines += ["", "}  // namespace", ""]
    for kind_of, name, array in [("KindRange", "kinds", "kKinds"), ("ShiftRange", "lower", "kLower"),
                                 ("BaseRun", "base_runs", "kBaseRuns"), ("uint32_t", "bases", "kBases"),
                                 ("Parts", "parts", "kParts")]:
        lines.append(f"std::span<const {kind_of}> {name}() {{ return {array}; }}")
    lines += ["", "}  // namespace mt::normalisation", ""]
    path.write_text("\n".join(lines))


def check():
    from tokenizers import normalizers, pre_tokenizers
    clean = normalizers.BertNormalizer(True, False, False, False)
    strip = normalizers.BertNormalizer(False, False, True, False)
    lower = normalizers.BertNormalizer(False, False, False, True)
    words = pre_tokenizers.BertPreTokenizer()
    bad = 0
    for c in CHARACTERS:
        text, k = f"a{chr(c)}b", kind(c)
        cleaned = {"Space": " ", "Dropped": ""}.get(k, chr(c))
        marks = "".join(map(chr, stripped(c)))
        small = "".join(map(chr, lowered(c)))
        n_words = {"Space": 2, "Punctuation": 3}.get(k, 1)
        for what, ours, theirs in [("cleaned", cleaned, clean.normalize_str(text)[1:-1]),
                                   ("stripped", marks, strip.normalize_str(text)[1:-1]),
                                   ("lower", small, lower.normalize_str(text)[1:-1]),
                                   ("words", n_words, len(words.pre_tokenize_str(clean.normalize_str(text))))]:
            if ours != theirs:
                bad += 1
                print(f"U+{c:04X} {category(c)} {what}: {ours!r}, tokenizers {theirs!r}")
    sys.exit(f"{bad} differences" if bad else 0)


if __name__ == "__main__":
    if unicodedata.unidata_version != "14.0.0":  # the lists above are what lies between 8 and 14
        sys.exit(f"expected a Python with Unicode 14.0.0, found {unicodedata.unidata_version}")
    if sys.argv[1:] == ["--check"]:
        check()
    write(ROOT / "src" / "text" / "normalisation_table.cpp")
