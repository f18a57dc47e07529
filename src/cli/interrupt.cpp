#include "cli/interrupt.h"

#include <unistd.h>

#include <atomic>
#include <csignal>

#include "cli/command.h"

namespace mt::cli {
namespace {

std::atomic<bool> seen{false};
std::atomic<bool> task_active{false};
std::atomic<int> pollers{0};
static_assert(std::atomic<bool>::is_always_lock_free && std::atomic<int>::is_always_lock_free);

void on_interrupt(int) {
  bool again = seen.exchange(true);
  bool unwinds = task_active.load() || pollers.load() > 0;
  if (again || !unwinds) ::_exit(exit_interrupted);
  // A task that does not come round in time is not waited for.
  ::alarm(5);
}

void on_alarm(int) {
  if (seen.load()) ::_exit(exit_interrupted);
}

void handle(int signal, void (*handler)(int)) {
  struct sigaction action {};
  action.sa_handler = handler;
  ::sigemptyset(&action.sa_mask);
  ::sigaction(signal, &action, nullptr);
}

void on_bus_error(int) {
  // A mapped file became shorter while it was read: the bytes are not there any more.
  constexpr char text[] = "microtome: a file changed while it was being read\n";
  [[maybe_unused]] auto written = ::write(2, text, sizeof text - 1);
  ::_exit(exit_bad_input);
}

}  // namespace

void install_signal_handlers() {
  handle(SIGBUS, on_bus_error);
  handle(SIGINT, on_interrupt);
  handle(SIGALRM, on_alarm);
  // A closed pipe and a file beyond `ulimit -f` are errors of the write then, with a message.
  handle(SIGPIPE, SIG_IGN);
  handle(SIGXFSZ, SIG_IGN);
}

void set_task_active(bool active) {
  task_active = active;
}
bool interrupted() {
  return seen;
}
void clear_interrupt() {
  ::alarm(0);
  seen = false;
}
PollsInterrupt::PollsInterrupt() {
  ++pollers;
}
PollsInterrupt::~PollsInterrupt() {
  --pollers;
}

}  // namespace mt::cli
