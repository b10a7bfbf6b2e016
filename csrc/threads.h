// Shares work out between threads (OpenMP): whole results each, so that their number changes no result.
#pragma once
#include <algorithm>
#include <cstdint>

namespace hpcm {

constexpr int64_t kWorkPerThread = 1 << 23;  // multiply-adds, about 0.1 ms: less does not pay for waking a thread

// Calls body(n) for n below `items`, which take `work` multiply-adds or as much time, all together.
template <class Body>
void for_each(int64_t items, int64_t work, int64_t threads, const Body& body) {
  threads = std::max<int64_t>(1, std::min(threads, work / kWorkPerThread));
  if (threads == 1) {
    for (int64_t n = 0; n < items; ++n) body(n);
    return;
  }
#pragma omp parallel for num_threads(static_cast<int>(threads)) schedule(dynamic)
  for (int64_t n = 0; n < items; ++n) body(n);
}

// The same for so many elements, `work` each, in runs: body(first, end).
template <class Body>
void for_each_run(int64_t elements, int64_t work, int64_t threads, const Body& body) {
  constexpr int64_t run = 1 << 14;
  for_each((elements + run - 1) / run, elements * work, threads,
           [&](int64_t n) { body(n * run, std::min(elements, (n + 1) * run)); });
}

// The same for tokens of so many channels: body(token).
template <class Body>
void for_each_token(int64_t tokens, int64_t channels, int64_t work, int64_t threads, const Body& body) {
  constexpr int64_t run = 16;
  for_each((tokens + run - 1) / run, tokens * channels * work, threads, [&](int64_t n) {
    for (int64_t t = n * run; t < std::min(tokens, (n + 1) * run); ++t) body(t);
  });
}

}  // namespace hpcm
