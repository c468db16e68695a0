#include "parallel.h"
#include <atomic>
#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace ssl {
namespace {

std::atomic<bool> child{false};

#if defined(__unix__) || defined(__APPLE__)
const int registered = pthread_atfork(nullptr, nullptr, [] { child = true; });
#endif

}  // namespace

bool forked() { return child.load(std::memory_order_relaxed); }

}  // namespace ssl
