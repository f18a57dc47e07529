#include "base/version.h"

namespace mt {
const char* version() {
  return MT_VERSION;
}
}  // namespace mt
