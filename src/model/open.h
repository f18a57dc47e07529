#pragma once
#include <memory>

#include "flow/model.h"

namespace mt {

// Finds the architecture's tensors and sizes in the file. Weights stay where they are; norms and
// biases are decoded. Throws Error naming file, tensor or key, expected and found: an architecture
// that is not known, a missing or misshapen tensor, a tensor of a layer that nothing here reads.
Model open_model(std::shared_ptr<const TensorFile> file);

// Opens the file and the model: open_model_file, then open_model.
Model open_model(const std::string& path);

}  // namespace mt
