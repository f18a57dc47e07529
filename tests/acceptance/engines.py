"""Two independent engines behind one interface, for judging only.

`upstream` is llama.cpp as the package xllamacpp builds it, unmodified; `ik` is ik_llama.cpp as
ik-llama-cpp-python builds it. Both are reached through the C interface that their shared objects
export, without flash attention. On a file of F32 tensors upstream computes in f32 throughout: it is
the precise judge. ik keeps its cached values in f16, which moves logits by about 1e-3: it is the
second opinion. On quantised files both quantise the activations too.
"""
import ctypes as C
import importlib.util
import os
import pathlib

import numpy as np

F32, F16 = 0, 1  # ggml's numbers of the types
os.environ.setdefault("GGML_NO_BACKTRACE", "1")


class _UpstreamModelParams(C.Structure):
    # As of the package's version that requirements.txt pins; a field may have moved in another,
    # so the defaults are compared before anything is changed. `spare` takes what comes after.
    _fields_ = [("devices", C.c_void_p), ("buft_overrides", C.c_void_p), ("n_gpu_layers", C.c_int32),
                ("split_mode", C.c_int), ("load_mode", C.c_int), ("lazy_mode", C.c_int),
                ("main_gpu", C.c_int32),
                ("tensor_split", C.c_void_p), ("progress", C.c_void_p), ("progress_data", C.c_void_p),
                ("kv_overrides", C.c_void_p), ("flags", C.c_bool * 6), ("spare", C.c_char * 256)]


class _UpstreamContextParams(C.Structure):
    _fields_ = [("n_ctx", C.c_uint32), ("n_batch", C.c_uint32), ("n_ubatch", C.c_uint32),
                ("n_seq_max", C.c_uint32), ("n_rs_seq", C.c_uint32), ("n_outputs", C.c_uint32 * 2),
                ("n_threads", C.c_int32), ("n_threads_batch", C.c_int32), ("ctx_type", C.c_int),
                ("rope_scaling_type", C.c_int), ("pooling_type", C.c_int), ("attention_type", C.c_int),
                ("flash_attn_type", C.c_int), ("floats", C.c_float * 6), ("yarn_orig_ctx", C.c_uint32),
                ("defrag_thold", C.c_float), ("cb_eval", C.c_void_p), ("cb_eval_data", C.c_void_p),
                ("type_k", C.c_int), ("type_v", C.c_int), ("abort", C.c_void_p),
                ("abort_data", C.c_void_p), ("spare", C.c_char * 256)]


class _Batch(C.Structure):
    # The last three fields are ik's; upstream's batch ends before them and never looks there.
    _fields_ = [("n_tokens", C.c_int32), ("token", C.POINTER(C.c_int32)), ("embd", C.c_void_p),
                ("pos", C.POINTER(C.c_int32)), ("n_seq_id", C.POINTER(C.c_int32)),
                ("seq_id", C.POINTER(C.POINTER(C.c_int32))), ("logits", C.POINTER(C.c_int8)),
                ("all_pos_0", C.c_int32), ("all_pos_1", C.c_int32), ("all_seq_id", C.c_int32)]


_LOG = C.CFUNCTYPE(None, C.c_int, C.c_char_p, C.c_void_p)
_quiet = _LOG(lambda level, text, data: None)


def _bind(lib, name, result, *arguments):
    f = getattr(lib, name)
    f.restype, f.argtypes = result, list(arguments)
    return f


class Engine:
    """One model in one engine. `logits(tokens)` gives [n_tokens, n_vocab] of a fresh context."""

    def __init__(self, path, n_ctx=512, n_threads=2):
        self.path, self.n_ctx, self.n_threads = str(path), n_ctx, n_threads
        self.model = self.ctx = None
        if not os.path.isfile(self.path):
            raise FileNotFoundError(self.path)
        self._load()
        if not self.model or not self.ctx:
            raise RuntimeError(f"{self.name} refuses {self.path}")
        self.n_vocab = self._n_vocab()

    def close(self):
        if self.ctx:
            self._free_context(self.ctx)
        if self.model:
            self._free_model(self.model)
        self.model = self.ctx = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def tokenize(self, text, add_special=True):
        raw = text.encode() if isinstance(text, str) else text
        room = len(raw) + 16
        out = (C.c_int32 * room)()
        n = self._tokenize(self._vocab, raw, len(raw), out, room, add_special, False)
        if n < 0:
            raise RuntimeError(f"{self.name}: {-n} tokens do not fit {room}")
        return np.frombuffer(out, np.int32, n).copy()

    def logits(self, tokens, first=0):
        """Of the positions first.. of a sequence of at most n_ctx tokens: [n - first, n_vocab]."""
        n = len(tokens)
        assert 0 < n <= self.n_ctx
        self._clear()
        ids = (C.c_int32 * n)(*map(int, tokens))
        pos = (C.c_int32 * n)(*range(n))
        one = (C.c_int32 * n)(*([1] * n))
        zero = C.c_int32(0)
        seq = (C.POINTER(C.c_int32) * n)(*([C.pointer(zero)] * n))
        want = (C.c_int8 * n)(*(int(i >= first) for i in range(n)))
        batch = _Batch(n, ids, None, pos, one, seq, want, 0, 0, 0)
        code = self._decode(self.ctx, batch)
        if code != 0:
            raise RuntimeError(f"{self.name}: decoding gave {code}")
        out = np.empty((n - first, self.n_vocab), np.float32)
        for i in range(first, n):
            p = self._logits(self.ctx, i)
            out[i - first] = np.ctypeslib.as_array(p, (self.n_vocab,))
        return out


class Upstream(Engine):
    name = "upstream"
    _lib = None

    @classmethod
    def version(cls):
        from importlib.metadata import version
        return "xllamacpp " + version("xllamacpp")

    @classmethod
    def lib(cls):
        if cls._lib is None:
            spec = importlib.util.find_spec("xllamacpp")
            so, = pathlib.Path(spec.submodule_search_locations[0]).glob("xllamacpp*.so")
            cls._lib = C.CDLL(str(so))
            if not os.environ.get("JUDGE_VERBOSE"):
                _bind(cls._lib, "llama_log_set", None, _LOG, C.c_void_p)(_quiet, None)
            cls._lib.llama_backend_init()
        return cls._lib

    def _load(self):
        lib = self.lib()
        p = _bind(lib, "llama_model_default_params", _UpstreamModelParams)()
        # Repacked weights would be computed by kernels that differ from the plain ones.
        if (p.n_gpu_layers, p.main_gpu, *p.flags[:3]) != (-1, 0, False, False, True):
            raise RuntimeError("xllamacpp: llama_model_params has another layout than expected")
        p.flags[2] = False
        p.n_gpu_layers = 0
        load = _bind(lib, "llama_model_load_from_file", C.c_void_p, C.c_char_p, _UpstreamModelParams)
        self._free_model = _bind(lib, "llama_model_free", None, C.c_void_p)
        self._free_context = _bind(lib, "llama_free", None, C.c_void_p)
        self.model = load(self.path.encode(), p)
        if not self.model:
            return
        c = _bind(lib, "llama_context_default_params", _UpstreamContextParams)()
        if (c.n_ctx, c.n_batch, c.n_ubatch, c.n_threads, c.rope_scaling_type, c.flash_attn_type,
                c.type_k, c.type_v) != (512, 2048, 512, 4, -1, -1, 1, 1):
            raise RuntimeError("xllamacpp: llama_context_params has another layout than expected")
        c.n_ctx = c.n_batch = c.n_ubatch = self.n_ctx
        c.n_threads = c.n_threads_batch = self.n_threads
        c.flash_attn_type = 0
        c.type_k = c.type_v = F32
        self.ctx = _bind(lib, "llama_init_from_model", C.c_void_p, C.c_void_p,
                         _UpstreamContextParams)(self.model, c)
        self._vocab = _bind(lib, "llama_model_get_vocab", C.c_void_p, C.c_void_p)(self.model)
        self._tokenize = _bind(lib, "llama_tokenize", C.c_int32, C.c_void_p, C.c_char_p, C.c_int32,
                               C.POINTER(C.c_int32), C.c_int32, C.c_bool, C.c_bool)
        self._decode = _bind(lib, "llama_decode", C.c_int32, C.c_void_p, _Batch)
        self._logits = _bind(lib, "llama_get_logits_ith", C.POINTER(C.c_float), C.c_void_p, C.c_int32)
        self.adds_bos = _bind(lib, "llama_vocab_get_add_bos", C.c_bool, C.c_void_p)(self._vocab)
        self.bos = _bind(lib, "llama_vocab_bos", C.c_int32, C.c_void_p)(self._vocab)
        memory = _bind(lib, "llama_get_memory", C.c_void_p, C.c_void_p)(self.ctx)
        clear = _bind(lib, "llama_memory_clear", None, C.c_void_p, C.c_bool)
        self._clear = lambda: clear(memory, True)

    def _n_vocab(self):
        return _bind(self.lib(), "llama_vocab_n_tokens", C.c_int32, C.c_void_p)(self._vocab)


class Ik(Engine):
    name = "ik"

    @classmethod
    def version(cls):
        from importlib.metadata import version
        return "ik-llama-cpp-python " + version("ik-llama-cpp-python")

    def _load(self):
        from ik_llama_cpp import _ctypes_api as api
        lib = api._lib
        if not os.environ.get("JUDGE_VERBOSE"):
            _bind(lib, "llama_log_set", None, _LOG, C.c_void_p)(_quiet, None)
        api.llama_backend_init()
        self._free_model, self._free_context = api.llama_free_model, api.llama_free
        p = api.llama_model_default_params()
        p.n_gpu_layers = 0
        self.model = api.llama_model_load_from_file(self.path.encode(), p)
        if not self.model:
            return
        c = api.llama_context_default_params()
        c.n_ctx = c.n_batch = c.n_ubatch = self.n_ctx
        c.n_threads = c.n_threads_batch = self.n_threads
        c.flash_attn = False
        c.type_k, c.type_v = F32, F16  # it takes no other V on the CPU: its one rounding
        self.ctx = api.llama_init_from_model(self.model, c)
        self._vocab = self.model  # this engine's tokenizer is asked through the model
        self._tokenize = _bind(lib, "llama_tokenize", C.c_int32, C.c_void_p, C.c_char_p, C.c_int32,
                               C.POINTER(C.c_int32), C.c_int32, C.c_bool, C.c_bool)
        self._decode = _bind(lib, "llama_decode", C.c_int32, C.c_void_p, _Batch)
        self._logits = _bind(lib, "llama_get_logits_ith", C.POINTER(C.c_float), C.c_void_p, C.c_int32)
        vocab = api.llama_model_get_vocab(self.model)
        self.adds_bos = _bind(lib, "llama_vocab_get_add_bos", C.c_bool, C.c_void_p)(vocab)
        self.bos = _bind(lib, "llama_vocab_bos", C.c_int32, C.c_void_p)(vocab)
        self._clear = lambda: api.llama_kv_cache_clear(self.ctx)

    def _n_vocab(self):
        from ik_llama_cpp import _ctypes_api as api
        return api.llama_vocab_n_tokens(api.llama_model_get_vocab(self.model))


ENGINES = {"upstream": Upstream, "ik": Ik}
