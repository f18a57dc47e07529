#pragma once
#include "cut/curvature.h"
#include "cut/encode.h"

namespace mt {

struct FeedbackStats {
  double plain = 0, best = 0;  // sums over rows of e h e^T, of the plain search and of what is kept
  int64_t rows_fed = 0;        // rows in which error feedback beat the plain search
};

// As encode_weight, but with regard to how errors of a row add up: per row w the quadratic form
// (w - q) h (w - q)^T is lowered, from the better of two starts, the plain search and error
// feedback (columns from last to first, each taking up the errors made before it: Frantar et al.
// 2022, in the LDL form of Chee et al. 2023), by coordinate descent on codes (Nair and Suggala
// 2024) and on the f16 scales, which the form has a closed minimum for; IQ2 and IQ3 by cells of
// eight weights. Formats with neither codes of weights nor such cells (IQ1, TQ1_0, NVFP4, F16 ...)
// are encoded plainly. Adds to `stats` unless it is null. The same bytes for any number
// of threads.
Weight encode_with_feedback(const Runtime& rt, const Weight& source, Dtype dtype,
                            const Curvature& curvature, const RowWeights& weights,
                            FeedbackStats* stats = nullptr);

}  // namespace mt
