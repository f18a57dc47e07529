"""A forward pass in float64, as plain as it goes: a third opinion on the goldens, and a place to look
when two engines differ. Reads a GGUF of llama, qwen2, qwen3 or gemma3 with gguf-py."""
import gguf
import numpy as np


def rms(x, gain, eps):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * gain


def rope(x, neox, n_dims, base, scale, factors):
    """x [n_tokens, n_heads, d_head]"""
    half = n_dims // 2
    angle = np.arange(len(x))[:, None] * scale * base ** (-np.arange(half) * 2 / n_dims)[None] / factors
    c, s = np.cos(angle)[:, None], np.sin(angle)[:, None]
    y = x.copy()
    a, b = (slice(0, half), slice(half, n_dims)) if neox else (slice(0, n_dims, 2), slice(1, n_dims, 2))
    y[..., a], y[..., b] = x[..., a] * c - x[..., b] * s, x[..., a] * s + x[..., b] * c
    return y


def gelu(g):
    return 0.5 * g * (1 + np.tanh(np.sqrt(2 / np.pi) * (g + 0.044715 * g**3)))


def gelu_by_table(g):
    """ggml looks GELU up in a table of f16 by the argument in f16."""
    rounded = g.astype(np.float16).astype(np.float64)
    y = gelu(rounded).astype(np.float16).astype(np.float64)
    return np.where(g <= -10, 0, np.where(g >= 10, g, y))


def forward(path, ids, gelu=gelu):
    r = gguf.GGUFReader(path)
    meta = {k: f.contents() for k, f in r.fields.items()}
    arch = meta["general.architecture"]
    get = lambda key, default=None: meta.get(f"{arch}.{key}", default)
    t = {x.name: gguf.dequantize(x.data, x.tensor_type).astype(np.float64)
         .reshape([int(n) for n in reversed(x.shape)]) for x in r.tensors}
    gemma = arch == "gemma3"
    d_model, heads, kv = get("embedding_length"), get("attention.head_count"), get("attention.head_count_kv")
    d_head = get("attention.key_length", d_model // heads)
    eps = get("attention.layer_norm_rms_epsilon")
    n = len(ids)
    x = t["token_embd.weight"][ids]
    if gemma:
        x = x * np.sqrt(d_model)
    before = np.arange(n)[:, None] - np.arange(n)[None]
    for i in range(get("block_count")):
        w = lambda name: t[f"blk.{i}.{name}.weight"]
        linear = lambda v, name: v @ w(name).T + t.get(f"blk.{i}.{name}.bias", 0)
        local = gemma and (i + 1) % 6 != 0
        base = 10000.0 if local else get("rope.freq_base", 10000.0)
        scale = 1.0 if local else 1.0 / get("rope.scaling.factor", 1.0)
        h = rms(x, w("attn_norm"), eps)
        q = linear(h, "attn_q").reshape(n, heads, d_head)
        k = linear(h, "attn_k").reshape(n, kv, d_head)
        v = linear(h, "attn_v").reshape(n, kv, d_head)
        if f"blk.{i}.attn_q_norm.weight" in t:
            q, k = rms(q, w("attn_q_norm"), eps), rms(k, w("attn_k_norm"), eps)
        turn = dict(neox=arch != "llama", n_dims=get("rope.dimension_count", d_head), base=base,
                    scale=scale, factors=t.get("rope_freqs.weight", 1.0))
        q, k = rope(q, **turn), rope(k, **turn)
        k, v = (np.repeat(y, heads // kv, axis=1) for y in (k, v))
        score = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(d_head)
        hidden = (before < 0) | (before >= get("attention.sliding_window") if local else False)
        score = np.where(hidden, -np.inf, score)
        p = np.exp(score - score.max(-1, keepdims=True))
        p /= p.sum(-1, keepdims=True)
        y = linear(np.einsum("hqk,khd->qhd", p, v).reshape(n, -1), "attn_output")
        x = x + (rms(y, w("post_attention_norm"), eps) if gemma else y)
        h = rms(x, w("ffn_norm"), eps)
        g = h @ w("ffn_gate").T
        act = gelu(g) if gemma else g / (1 + np.exp(-g))
        y = (act * (h @ w("ffn_up").T)) @ w("ffn_down").T
        x = x + (rms(y, w("post_ffw_norm"), eps) if gemma else y)
    x = rms(x, t["output_norm.weight"], eps)
    return x @ t.get("output.weight", t["token_embd.weight"]).T
