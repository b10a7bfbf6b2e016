// Two layers after one another, place by place, so that what is between them stays in the cache: the branch of a
// residual block. The plane in between would be its largest by far.
#pragma once
#include <vector>

#include "integer_linear.h"

namespace hpcm {

// All outputs of the places 0 … count - 1 of a layer whose inputs follow each other at one distance.
inline void linear_run(const Linear& layer, int64_t count) {
  const int64_t blocks = (layer.outputs + kBlock - 1) / kBlock;
  for (int64_t block = 0; block < blocks; block += kBlocks) {
    int64_t j = 0;
    linear_rows<kRows>(layer, 0, j, count, block, std::min<int64_t>(kBlocks, blocks - block));
  }
}

// expand.y and project.segments are set here; expand has an even number of outputs.
inline void branch(const Linear& expand, const Linear& project, int64_t places, int64_t threads) {
  constexpr int64_t chunk = 128;  // places for which the weights of both layers pass once
  const int64_t work = places * expand.outputs * 2 * (expand.pairs + project.outputs / 2);
  for_each((places + chunk - 1) / chunk, work, threads, [&](int64_t n) {
    const int64_t first = n * chunk, count = std::min(chunk, places - first);
    std::vector<int16_t> hidden(count * expand.outputs);
    Linear into = expand, out_of = project;
    for (int64_t s = 0; s < into.count; ++s) into.segments[s].x += first * into.segments[s].column;
    into.y = hidden.data();
    linear_run(into, count);
    out_of.segments[0] = {hidden.data(), expand.outputs / 2, 0, expand.outputs};
    out_of.added += first * project.outputs;
    out_of.y += first * project.outputs;
    linear_run(out_of, count);
  });
}

}  // namespace hpcm
