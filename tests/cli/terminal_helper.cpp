// The program's sources are not part of the library: the tests of its text functions compile them.
#include "cli/terminal.cpp"
