// Memory that is fetched into the second cache while something else is computed.
#pragma once
#include <cstdint>

namespace hpcm {

// Parts of memory, fetched a few lines at a time: with too many lines on their way, the processor waits.
class Ahead {
 public:
  // For what is read later, the number of threads is given: with several, nothing is fetched, since it is not known
  // whose core will read it.
  explicit Ahead(int64_t threads = 1) : wanted_(threads == 1) {}
  // `rows` rows of `count` elements, `stride` elements apart. Parts after the first kMost are left out, and so is the
  // last line of rows that do not begin with a line.
  template <class Element>
  void add(const Element* from, int64_t count, int64_t rows = 1, int64_t stride = 0) {
    constexpr int64_t size = sizeof(Element);
    if (!wanted_ || !from || count <= 0 || rows <= 0 || parts_ == kMost) return;
    part_[parts_++] = {reinterpret_cast<const char*>(from), count * size, rows, stride * size};
    lines_ += rows * ((count * size + kLine - 1) / kLine);
  }
  int64_t lines() const { return lines_; }  // that were added
  void fetch(int64_t lines) {
    for (; lines > 0 && next_ < parts_; --lines) {
      Part& part = part_[next_];
      __builtin_prefetch(part.from + done_, 0, 2);
      done_ += kLine;
      if (done_ < part.bytes) continue;
      done_ = 0;
      part.from += part.stride;
      if (--part.rows == 0) ++next_;
    }
  }

 private:
  static constexpr int64_t kMost = 8, kLine = 64;
  struct Part {
    const char* from;
    int64_t bytes, rows, stride;
  };
  bool wanted_;
  Part part_[kMost];
  int64_t parts_ = 0, next_ = 0, done_ = 0, lines_ = 0;
};

}  // namespace hpcm
