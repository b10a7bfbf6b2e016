// Calls one operator of the C++ libraries once, on fixed numbers, one thread: what `callgrind.py` counts the
// instructions of. Built with integer_cpu.cpp, or with biwkv4_cpu.cpp and -DHPCM_BIWKV4. Usage: count_driver OPERATOR
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

constexpr int64_t kHeight = 16, kWidth = 24, kTokens = kHeight * kWidth;

// Numbers within ±reach, the same everywhere (a linear congruential generator's high bits).
template <class Number>
std::vector<Number> numbers(int64_t count, int reach) {
  static uint64_t state = 1;
  std::vector<Number> values(count);
  for (Number& value : values) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    value = static_cast<Number>(static_cast<int64_t>((state >> 33) % (2 * reach + 1)) - reach);
  }
  return values;
}

using Shorts = std::vector<int16_t>;
using Ints = std::vector<int32_t>;

}  // namespace

#ifdef HPCM_BIWKV4

extern "C" void hpcm_biwkv4_forward_float32(const float*, const float*, const float*, const float*, float*, float*, int64_t,
                                            int64_t, int64_t, int, int);

int main(int count, char** names) {
  constexpr int64_t channels = 192, chunk = 32;
  if (count != 2 || std::strcmp(names[1], "biwkv4_forward_float32") != 0) return 2;
  std::vector<float> w(channels, 0.01f), u(channels, 0.5f), y(kTokens * channels), k = numbers<float>(kTokens * channels, 3),
                     v = numbers<float>(kTokens * channels, 100), scratch(8 * channels * (kTokens + chunk - 1) / chunk);
  hpcm_biwkv4_forward_float32(w.data(), u.data(), k.data(), v.data(), y.data(), scratch.data(), 1, kTokens, channels, chunk, 1);
  return 0;
}

#else

extern "C" {
void hpcm_integer_linear(const int16_t*, const int16_t*, const int32_t*, const int32_t*, const int16_t*, const int16_t*,
                         int16_t*, int64_t, int64_t, int64_t, int64_t, int64_t);
void hpcm_integer_depthwise(const int16_t*, const int16_t*, const int32_t*, const int32_t*, int16_t*, int64_t, int64_t,
                            int64_t, int64_t, int64_t);
void hpcm_integer_layer_norm(const int16_t*, const int32_t*, const int32_t*, int16_t*, int64_t, int64_t, int64_t, int64_t,
                             int64_t);
void hpcm_integer_window_attention(const int16_t*, const int16_t*, const int16_t*, const int16_t*, int16_t*, int64_t,
                                   int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t);
void hpcm_integer_bi_wkv(const int16_t*, const int16_t*, const int32_t*, const int32_t*, const int32_t*, const int16_t*,
                         int16_t*, int64_t, int64_t, int64_t, int64_t, int64_t);
}

int main(int count, char** names) {
  constexpr int64_t channels = 192, outputs = 256;
  if (count != 2) return 2;
  const auto asked = [&](const char* name) { return std::strcmp(names[1], name) == 0; };
  const Shorts x = numbers<int16_t>(kTokens * channels, 2000), z = numbers<int16_t>(kTokens * channels, 2000),
               v = numbers<int16_t>(kTokens * channels, 2000), weights = numbers<int16_t>(outputs * channels, 100),
               table(2048, 1 << 12);
  const Ints bias = numbers<int32_t>(outputs, 1000), shift(outputs, 12);
  Shorts y(kTokens * outputs);
  if (asked("integer_linear")) {
    hpcm_integer_linear(x.data(), weights.data(), bias.data(), shift.data(), nullptr, nullptr, y.data(), kTokens, channels / 2,
                        outputs, 1, 1);
  } else if (asked("integer_depthwise")) {
    hpcm_integer_depthwise(x.data(), weights.data(), bias.data(), shift.data(), y.data(), kHeight, kWidth, channels, 5, 1);
  } else if (asked("integer_layer_norm")) {
    hpcm_integer_layer_norm(x.data(), bias.data(), bias.data(), y.data(), kTokens, channels, 16, 1, 1);
  } else if (asked("integer_window_attention")) {
    hpcm_integer_window_attention(x.data(), z.data(), v.data(), table.data(), y.data(), kHeight, kWidth, channels, 8, 8, 8,
                                  1 << 12, 20, static_cast<int64_t>(table.size()), 1);
  } else if (asked("integer_bi_wkv")) {
    constexpr int64_t length = (kTokens + 31) / 32;
    const Ints factors(channels * (length + 1), 1 << 14);
    hpcm_integer_bi_wkv(x.data(), v.data(), factors.data(), factors.data(), factors.data(), table.data(), y.data(), kTokens,
                        channels, length, static_cast<int64_t>(table.size()), 1);
  } else {
    return 2;
  }
  return 0;
}

#endif
