#pragma once
#if defined(__GNUC__) && !defined(__clang__)
// g++ 12's own header reads an undefined register on purpose and warns about it, where its
// functions were inlined: the warnings stay off for the whole file.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>
