// The program's sources are not part of the library: the tests of its progress compile them.
#include "cli/interrupt.cpp"
#include "cli/progress_draw.cpp"
