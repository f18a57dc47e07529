#pragma once

namespace mt {
const char* version();
}  // namespace mt
