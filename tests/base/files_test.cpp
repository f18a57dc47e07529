#include "base/files.h"
#include "base/error.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>

#include "base/error.h"
#include "support/folder.h"

namespace mt {
namespace {

namespace fs = std::filesystem;

int64_t count(const test::TemporaryFolder& folder) {
  return std::distance(fs::directory_iterator(folder.path()), fs::directory_iterator());
}

// A process that has begun to write `path` and now waits.
pid_t writer_of(const std::string& path) {
  int ready[2];
  EXPECT_EQ(::pipe(ready), 0);
  const pid_t pid = ::fork();
  if (pid == 0) {
    AtomicFile file(path);
    file.write(std::string("half"));
    [[maybe_unused]] auto told = ::write(ready[1], "x", 1);
    for (;;) ::pause();
  }
  char byte = 0;
  EXPECT_EQ(::read(ready[0], &byte, 1), 1);
  ::close(ready[0]);
  ::close(ready[1]);
  return pid;
}

void kill_and_wait(pid_t pid) {
  ::kill(pid, SIGKILL);
  ::waitpid(pid, nullptr, 0);
}

TEST(AtomicFile, WhatAKilledWriterLeftGoesWithTheNextWrite) {
  test::TemporaryFolder folder;
  for (const std::string& name : {std::string("out.gguf"), std::string(240, 'n')}) {
    const std::string out = folder / name;
    kill_and_wait(writer_of(out));
    EXPECT_FALSE(fs::exists(out));
    ASSERT_EQ(count(folder), 1) << "the temporary";
    // That of another output is not this one's to remove.
    AtomicFile(folder / "another").commit();
    EXPECT_EQ(count(folder), 2);
    AtomicFile file(out);
    file.write(std::string("whole"));
    file.commit();
    EXPECT_EQ(test::bytes_of(out), "whole");
    EXPECT_EQ(count(folder), 2) << "the two outputs";
    fs::remove(out);
    fs::remove(folder / "another");
  }
}

TEST(AtomicFile, WithoutReplacingItLeavesWhatCameMeanwhile) {
  test::TemporaryFolder folder;
  const auto path = folder / "out";
  AtomicFile first(path, false), second(path, false);
  first.write("first");
  second.write("second");
  first.commit();
  EXPECT_THROW(second.commit(), Error);
  EXPECT_EQ(read_text_file(path), "first");
  AtomicFile third(path);
  third.write("third");
  third.commit();
  EXPECT_EQ(read_text_file(path), "third");
}

TEST(AtomicFile, TheTemporaryOfALivingProcessStays) {
  test::TemporaryFolder folder;
  const std::string out = folder / "out.gguf";
  const pid_t writer = writer_of(out);
  AtomicFile first(out), second(out);  // in one process too
  EXPECT_EQ(count(folder), 3);
  first.commit();
  second.commit();
  EXPECT_EQ(count(folder), 2);
  kill_and_wait(writer);
  AtomicFile(out).commit();
  EXPECT_EQ(count(folder), 1);
}

}  // namespace
}  // namespace mt
