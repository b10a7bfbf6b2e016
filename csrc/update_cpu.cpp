// The update of the weights after a backward pass, on the processor: the norm of the gradients, and AdamW together with
// the averaged weights. Both are bounded by memory, so every array is read and written once. A plain C interface.
// The weights come in pieces of contiguous float32; each piece has one gradient for every process that trains.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace hpcm {

constexpr int64_t kBlock = 1 << 14;  // weights that a thread takes at a time: 64 KiB of every array
constexpr int64_t kRun = 1 << 10;    // weights whose summed gradients stay in the first-level cache

struct Block {
  int64_t piece, first, end;
};

std::vector<Block> blocks_of(const int64_t* lengths, int64_t pieces) {
  std::vector<Block> blocks;
  for (int64_t piece = 0; piece < pieces; ++piece) {
    for (int64_t first = 0; first < lengths[piece]; first += kBlock) {
      blocks.push_back({piece, first, std::min(lengths[piece], first + kBlock)});
    }
  }
  return blocks;
}

// Calls body(n) for every block, shared out among threads.
template <class Body>
void for_each_block(const std::vector<Block>& blocks, int64_t threads, const Body& body) {
  const int64_t count = static_cast<int64_t>(blocks.size());
#pragma omp parallel for num_threads(static_cast<int>(std::max<int64_t>(1, threads))) schedule(dynamic, 4)
  for (int64_t n = 0; n < count; ++n) body(n);
}

// Process p's gradient of a piece is at [p * pieces + piece].
struct Gradients {
  const float* const* gradients;
  int64_t pieces, processes;

  // The sum over processes of `length` numbers from `first` on: where it lies already, or in `sums`.
  const float* sum(int64_t piece, int64_t first, int64_t length, float* __restrict sums) const {
    const float* one = gradients[piece] + first;
    if (processes == 1) return one;
    const float* other = gradients[pieces + piece] + first;
    for (int64_t n = 0; n < length; ++n) sums[n] = one[n] + other[n];
    for (int64_t process = 2; process < processes; ++process) {
      const float* next = gradients[process * pieces + piece] + first;
      for (int64_t n = 0; n < length; ++n) sums[n] += next[n];
    }
    return sums;
  }
};

double sum_of_squares(const float* x, int64_t length) {
  constexpr int lanes = 16;  // sums of their own, so that vectors can hold them
  double sums[lanes] = {};
  int64_t n = 0;
  for (; n + lanes <= length; n += lanes) {
    for (int lane = 0; lane < lanes; ++lane) {
      const double value = x[n + lane];
      sums[lane] += value * value;
    }
  }
  for (; n < length; ++n) sums[n % lanes] += static_cast<double>(x[n]) * x[n];
  double sum = 0;
  for (int lane = 0; lane < lanes; ++lane) sum += sums[lane];
  return sum;
}

// What holds for all weights of a step; see hpcm_codec/ops/update.py.
struct Step {
  float scale;                   // of the summed gradients
  float mean_part, square_part;  // 1 - beta1, 1 - beta2: the share of a new gradient in the moments
  float square_kept;             // beta2
  float epsilon;
  float average_part;  // the share of the new weights in the averages
};

struct Rates {
  float kept;    // 1 - rate * weight decay
  float length;  // rate / (1 - beta1^steps)
  float root;    // 1 / sqrt(1 - beta2^steps)
};

void adamw(const float* sums, float* __restrict parameters, float* __restrict averages, float* __restrict means,
           float* __restrict squares, int64_t length, const Step step, const Rates rates) {
  const bool small = step.average_part < 0.5f;  // from the nearer end, as torch.lerp does
  const float rest = 1.0f - step.average_part;
#pragma omp simd
  for (int64_t n = 0; n < length; ++n) {
    const float gradient = sums[n] * step.scale;
    const float mean = means[n] + (gradient - means[n]) * step.mean_part;
    const float square = squares[n] * step.square_kept + gradient * gradient * step.square_part;
    means[n] = mean;
    squares[n] = square;
    const float parameter =
        parameters[n] * rates.kept - rates.length * mean / (std::sqrt(square) * rates.root + step.epsilon);
    parameters[n] = parameter;
    const float way = parameter - averages[n];
    averages[n] = small ? averages[n] + way * step.average_part : parameter - way * rest;
  }
}

}  // namespace hpcm

// *result: the sum of squares of the gradients' sum over processes. The same whatever the number of threads.
extern "C" void hpcm_update_squared_norm(const float* const* gradients, const int64_t* lengths, int64_t pieces,
                                         int64_t processes, double* result, int64_t threads) {
  const std::vector<hpcm::Block> blocks = hpcm::blocks_of(lengths, pieces);
  const hpcm::Gradients all{gradients, pieces, processes};
  std::vector<double> partial(blocks.size());
  hpcm::for_each_block(blocks, threads, [&](int64_t n) {
    const hpcm::Block& block = blocks[n];
    alignas(64) float sums[hpcm::kRun];
    for (int64_t at = block.first; at < block.end; at += hpcm::kRun) {
      const int64_t length = std::min(hpcm::kRun, block.end - at);
      partial[n] += hpcm::sum_of_squares(all.sum(block.piece, at, length, sums), length);
    }
  });
  *result = 0;
  for (double part : partial) *result += part;
}

// kept, length, root: one number for each piece, see Rates.
extern "C" void hpcm_update_adamw(const float* const* gradients, float* const* parameters, float* const* averages,
                                  float* const* means, float* const* squares, const int64_t* lengths,
                                  const double* kept, const double* length, const double* root, int64_t pieces,
                                  int64_t processes, double scale, double beta1, double beta2, double epsilon,
                                  double average_part, int64_t threads) {
  const std::vector<hpcm::Block> blocks = hpcm::blocks_of(lengths, pieces);
  const hpcm::Gradients all{gradients, pieces, processes};
  const hpcm::Step step{static_cast<float>(scale), static_cast<float>(1 - beta1), static_cast<float>(1 - beta2),
                        static_cast<float>(beta2), static_cast<float>(epsilon),   static_cast<float>(average_part)};
  hpcm::for_each_block(blocks, threads, [&](int64_t n) {
    const hpcm::Block& block = blocks[n];
    const int64_t piece = block.piece;
    const hpcm::Rates rates{static_cast<float>(kept[piece]), static_cast<float>(length[piece]),
                            static_cast<float>(root[piece])};
    alignas(64) float sums[hpcm::kRun];
    for (int64_t at = block.first; at < block.end; at += hpcm::kRun) {
      const int64_t run = std::min(hpcm::kRun, block.end - at);
      hpcm::adamw(all.sum(piece, at, run, sums), parameters[piece] + at, averages[piece] + at, means[piece] + at,
                  squares[piece] + at, run, step, rates);
    }
  });
}
