// A residual block of a training step: shifted = depthwise 3×3(x), hidden = leaky(expand(shifted)), y = x + factor ·
// project(hidden). x and y are a Stream (training_planes.h); what is between them is bfloat16.
#pragma once
#include "training_planes.h"

namespace hpcm {

struct BlockSize {
  Plane plane;
  int64_t hidden_channels;
  int64_t factor_rows;  // 1: all pictures share the factors

  int64_t picture() const { return plane.height * plane.width; }
  // Pictures that are worked on together, so that there are enough tokens and what is computed stays in the cache.
  int64_t together(int64_t threads) const {
    return std::max<int64_t>(1, std::min(plane.batch, kChunk * threads / picture()));
  }
};

template <class Stream>
struct BlockForward {
  const Stream* x;
  const float *taps, *taps_bias;
  const BFloat16* expand;  // packed
  const float* expand_bias;
  const BFloat16* project;  // packed
  const float* project_bias;
  const float* factor;  // may be null, and then `branch` is
  BFloat16 *shifted, *hidden;
  BFloat16* branch;  // what the factor is applied to
  Stream* y;
};

template <class Stream>
void residual(const BlockSize& size, const BlockForward<Stream>& io, int64_t threads) {
  static thread_local Scratch<BFloat16> memory;
  const int64_t channels = size.plane.channels, hidden_channels = size.hidden_channels, batch = size.plane.batch;
  const int64_t picture = size.picture(), together = size.together(threads);
  BFloat16* near = memory.get(together * picture * channels);
  for (int64_t b = 0; b < batch; b += together) {
    const Plane plane{std::min(together, batch - b), size.plane.height, size.plane.width, channels};
    const int64_t begin = b * picture, at = begin * channels, next = b + plane.batch;
    Ahead later(threads);
    later.add(io.x + next * picture * channels, std::min(together, batch - next) * picture * channels);
    depthwise<3, Stream, BFloat16>(io.x + at, io.taps, io.taps_bias, nullptr, near, io.shifted + at, plane, false,
                                   threads);
    for_each(blocks_of(plane.tokens(), kRows), threads, [&](int64_t n) {
      static thread_local Scratch<BFloat16> hidden_memory;
      const int64_t first = n * kRows, rows = std::min(kRows, plane.tokens() - first);
      BFloat16* near_hidden = hidden_memory.get(kRows * hidden_channels);
      Finish<BFloat16> to_hidden{hidden_channels, near_hidden};
      to_hidden.bias = io.expand_bias;
      to_hidden.leaky = true;
      to_hidden.kept = io.hidden + (begin + first) * hidden_channels;
      const int64_t from = at + first * channels;
      Finish<Stream> to_y{channels, io.y + from};
      to_y.bias = io.project_bias;
      to_y.before = io.branch ? io.branch + from : nullptr;
      to_y.factor = io.factor && size.factor_rows > 1 ? io.factor + b * channels : io.factor;
      to_y.first_token = first;
      to_y.tokens_of_factor = size.factor_rows > 1 ? picture : 0;
      to_y.added = io.x + from;
      const Input expansion[] = {{near + first * channels, channels, io.expand}};
      const Input projection[] = {{near_hidden, hidden_channels, io.project}};
      multiply_rows(expansion, hidden_channels, 0, rows, to_hidden, later);
      multiply_rows(projection, channels, 0, rows, to_y, later);
    });
  }
  finish_writes_past_caches();
}

template <class Stream>
struct BlockBackward {
  const Stream* g;  // the gradient of y
  const Stream* x;
  const BFloat16 *shifted, *hidden, *branch;
  const float* taps;
  const BFloat16 *expand, *project;  // packed for gradients
  const float* factor;
  Stream* x_gradient;
  float *taps_gradient, *taps_bias_gradient, *expand_gradient, *expand_bias_gradient, *project_gradient,
      *project_bias_gradient;
  float* factor_gradient;            // begins as zeros
  bool expand_added, project_added;  // whether those gradients are added to what is there
};

// g in bfloat16: g itself if it is that already, else a copy in `memory`.
inline const BFloat16* narrowed(const BFloat16* g, int64_t, Scratch<BFloat16>&, int64_t) { return g; }
inline const BFloat16* narrowed(const float* g, int64_t count, Scratch<BFloat16>& memory, int64_t threads) {
  BFloat16* copy = memory.get(count);
  for_each_vector(count, threads, [&](int64_t at, int64_t live) { write(read(g + at, live), copy + at, live); });
  return copy;
}

// Goes through the tokens in parts whose working memory stays in the cache.
template <class Stream>
void residual_backward(const BlockSize& size, const BlockBackward<Stream>& io, int64_t threads) {
  static thread_local Scratch<BFloat16> branch_memory, hidden_memory, shifted_memory;
  const int64_t channels = size.plane.channels, hidden_channels = size.hidden_channels, batch = size.plane.batch;
  const int64_t picture = size.picture(), part = kChunk * threads, together = size.together(threads);
  BFloat16* hidden_gradient = hidden_memory.get(part * hidden_channels);
  BFloat16* shifted_gradient = shifted_memory.get(together * picture * channels);
  for (int64_t b = 0; b < batch; b += together) {
    const int64_t begin = b * picture, end = std::min(batch, b + together) * picture;
    for (int64_t first = begin; first < end; first += part) {
      const int64_t tokens = std::min(part, end - first);
      const int64_t next = first + tokens, soon = std::min(part, batch * picture - next);
      Ahead later(threads);  // what is needed first is fetched last, so that it is still in the cache
      later.add(io.x + first * channels, tokens * channels);  // read at the end of these pictures
      later.add(io.shifted + next * channels, soon * channels);
      later.add(io.hidden + next * hidden_channels, soon * hidden_channels);
      if (io.factor) later.add(io.branch + next * channels, soon * channels);
      later.add(io.g + next * channels, soon * channels);
      const BFloat16* out;  // the gradient of what `project` gives
      if (io.factor) {
        BFloat16* branch_gradient = branch_memory.get(part * channels);
        out = branch_gradient;
        factor_backward(io.g, io.branch, io.factor, size.factor_rows > 1 ? picture : batch * picture, channels, first,
                        first + tokens, branch_gradient, io.factor_gradient, threads);
      } else {
        out = narrowed(io.g + first * channels, tokens * channels, branch_memory, threads);
      }
      Finish<BFloat16> to_hidden{hidden_channels, hidden_gradient};
      to_hidden.activated = io.hidden + first * hidden_channels;
      const Finish<BFloat16> to_shifted{channels, shifted_gradient + (first - begin) * channels};
      const Input projection[] = {{out, channels, io.project}};
      const Input expansion[] = {{hidden_gradient, hidden_channels, io.expand}};
      for_each(blocks_of(tokens, kRows), threads, [&](int64_t n) {
        const int64_t rows = std::min(kRows, tokens - n * kRows);
        multiply_rows(projection, hidden_channels, n * kRows, rows, to_hidden, later);
        multiply_rows(expansion, channels, n * kRows, rows, to_shifted, later);
      });
      weight_gradient(out, channels, io.hidden + first * hidden_channels, hidden_channels, tokens, io.project_gradient,
                      hidden_channels, first > 0 || io.project_added, threads, &later);
      column_sums(out, tokens, channels, io.project_bias_gradient, first > 0, threads);
      weight_gradient(hidden_gradient, hidden_channels, io.shifted + first * channels, channels, tokens,
                      io.expand_gradient, channels, first > 0 || io.expand_added, threads, &later);
      column_sums(hidden_gradient, tokens, hidden_channels, io.expand_bias_gradient, first > 0, threads);
    }
    const Plane plane{(end - begin) / picture, size.plane.height, size.plane.width, channels};
    const int64_t at = begin * channels;
    depthwise_gradient<3>(io.x + at, shifted_gradient, io.taps_gradient, io.taps_bias_gradient, plane, b > 0, threads);
    depthwise<3>(shifted_gradient, io.taps, nullptr, io.g + at, io.x_gradient + at, nullptr, plane, true, threads);
  }
}

}  // namespace hpcm
