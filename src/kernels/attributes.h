#pragma once

// The instruction sets stand on the functions, never on a file: a flag for the whole file would
// also compile shared inline functions for it, and the linker may keep those for everyone.
#define MT_AVX2 __attribute__((target("avx2,fma,f16c")))
#define MT_AVX2_INLINE MT_AVX2 __attribute__((always_inline)) static inline
// What every processor with AVX-512 has, for the exact path; and VNNI and VBMI for dot products.
#define MT_AVX512F __attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")))
#define MT_AVX512F_INLINE MT_AVX512F __attribute__((always_inline)) static inline
#define MT_AVX512                                                                \
  __attribute__((                                                                \
      target("avx2,fma,f16c,bmi2,avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi," \
             "avx512vnni")))
#define MT_AVX512_INLINE MT_AVX512 __attribute__((always_inline)) static inline
#define MT_AVX512BF16 \
  __attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")))

// Loops over an array of registers have to be unrolled completely; those around them must not be
// where the compiler would then mix their rounds and run out of registers.
#if defined(__clang__)
#define MT_UNROLL _Pragma("unroll")
#define MT_KEEP_LOOP _Pragma("nounroll")
#else
#define MT_UNROLL _Pragma("GCC unroll 32")
#define MT_KEEP_LOOP _Pragma("GCC unroll 1")
#endif
