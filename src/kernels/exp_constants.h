#pragma once

namespace mt::exp_constants {

// exp(x) as every table computes it, each step one rounded operation:
//   t = fma(x, log2_e, magic)          rounds x*log2(e) to an integer in t's low bits
//   n = t - magic
//   r = fma(n, minus_ln2_high, x); r = fma(n, minus_ln2_low, r)
//   p = fma(fma(fma(fma(fma(fma(q4, r, q3), r, q2), r, q1), r, q0), r, 1), r, 1)
//   2^n by shifting t's low bits to the exponent; result p * 2^n
// then 0 where x < lowest and inf where x > highest. The polynomial is a minimax fit of
// exp on |r| <= 0.3475 with the first two coefficients held at 1: relative error 3e-9.
constexpr float log2_e = 0x1.715476p+0f;
constexpr float magic = 12582912.0f;  // 1.5 * 2^23
constexpr float minus_ln2_high = -0.693359375f;
constexpr float minus_ln2_low = 0x1.bd0106p-13f;
constexpr float q0 = 0x1.fffffcp-2f;
constexpr float q1 = 0x1.555490p-3f;
constexpr float q2 = 0x1.5558fcp-5f;
constexpr float q3 = 0x1.123b6ap-7f;
constexpr float q4 = 0x1.6a21a8p-10f;
constexpr float lowest = -87.3f;
constexpr float highest = 88.37f;

// gelu_tanh(g) = g / (1 + exp(-2z)), z = sqrt(2/pi) (g + 0.044715 g^3), evaluated as
//   w = fma(g*g, gelu_cubic, gelu_linear) * g, exp(w)
constexpr float gelu_linear = -1.5957691216f;  // -2 sqrt(2/pi)
constexpr float gelu_cubic = -1.5957691216f * 0.044715f;

}  // namespace mt::exp_constants
