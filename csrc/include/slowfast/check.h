// SF_CHECK: invariants that the Python side already guarantees; a violation is a RuntimeError, never a crash.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace slowfast {

template <typename... Args>
[[noreturn]] void fail(const char* condition, const Args&... message) {
  std::ostringstream text;
  text << "slowfast: ";
  (text << ... << message);
  text << " (violated: " << condition << ")";
  throw std::runtime_error(text.str());
}

}  // namespace slowfast

#define SF_CHECK(condition, ...)                               \
  do {                                                         \
    if (!(condition)) slowfast::fail(#condition, __VA_ARGS__); \
  } while (false)
