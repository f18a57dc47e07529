#pragma once

namespace mt::cli {

// Installs the handlers: SIGINT as command.h describes it, SIGPIPE ignored (a closed pipe is then
// an ordinary write error).
void install_signal_handlers();
// Whether a task that reports progress is under way: it unwinds at its next update.
void set_task_active(bool active);

}  // namespace mt::cli
