// Bi-WKV4: the arithmetic, written once for the C++ and the CUDA build.
//
// For every channel,   y_t = (sum_{i != t} e^{k_i - w(|t-i|-1)} v_i + e^{u+k_t} v_t) / (the same without v).
//
// A sum of such terms is carried as an *anchored* state: its largest exponent is not stored as a number but as the
// token it came from, (key, distance) meaning e^{key - w*distance}, and the sums are relative to it. Differences of two
// anchors are then taken without rounding where they matter, so the rounding errors of a large key or a long distance
// never accumulate, and every weight is e^{something <= 0}.
//
// Exponents (w, u, k) carry a factor 2^-27 and values a factor 2^-24: both powers of two, so nothing is rounded, and no
// finite input can then overflow for T < 2^24.
//
// T is cut into chunks. Three passes, in each of which all threads are independent:
// - summarise, one thread per (batch, chunk, channel): the state of the chunk alone, as its right and its left end see
//   it;
// - carry, one thread per (batch, channel): turns those into the state of everything before, and of everything after,
//   each chunk;
// - outputs, one thread per (batch, chunk, channel): the results of the chunk's tokens.
//
// A Lane is a float (CUDA: one channel) or a vector of neighbouring channels (C++). Every operation is an IEEE one in a
// fixed order, built without contraction to fma, so results depend neither on the number of threads nor on the lane's
// width; hpcm_codec/ops/scan.py performs the same operations in the same order, and in float32 all three give the same
// bits.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#define HPCM_HD __host__ __device__ __forceinline__
#else
#define HPCM_HD inline __attribute__((always_inline))
#endif

namespace hpcm {

constexpr int kMaxChunk = 32;  // tokens a thread keeps states of; ops/scan.py never uses more
constexpr double kExponentScale = 0x1p-27;
constexpr double kValueScale = 0x1p-24;

// What differs between lanes: element type, width, and the operations that need integers. Vector lanes specialise these
// in biwkv4_cpu.cpp.
template <class Lane>
struct LaneTraits;

template <>
struct LaneTraits<float> {
  using Real = float;
  static constexpr int width = 1;
  static HPCM_HD float splat(float x) { return x; }
  static HPCM_HD float select(bool mask, float a, float b) { return mask ? a : b; }
  static HPCM_HD float round_even(float x) { return rintf(x); }
  static HPCM_HD float power_of_two(float n) {  // n a whole number in [-127, 127]; -127 gives exactly 0
    const int32_t bits = (static_cast<int32_t>(n) + 127) << 23;
    float result;
    memcpy(&result, &bits, sizeof result);
    return result;
  }
};

template <class Real>
struct Numbers;

template <>
struct Numbers<float> {
  static constexpr float lowest_power = -127.0f;
  static constexpr float largest = 3.402823466e+38f;
  static constexpr float empty_key = -0x1p127f;  // below every exponent that a finite input can reach
  static constexpr float log2_e_unscaled = static_cast<float>(1.4426950408889634 * 0x1p27);
  // 2^f - 1 = f(c0 + c1 f + ...) on |f| <= 1/2, interpolated at Chebyshev nodes; relative error 5.1e-9.
  template <class Lane>
  static HPCM_HD Lane exp2_fraction(Lane f) {
    Lane p = f * 0.00015453162944120690f + 0.0013390863364671234f;
    p = p * f + 0.0096180825572778515f;
    p = p * f + 0.055503571142190779f;
    p = p * f + 0.24022650760568127f;
    p = p * f + 0.69314718802622879f;
    return p * f + 1.0f;
  }
};

template <>
struct Numbers<double> {
  static constexpr double lowest_power = -1023.0;
  static constexpr double largest = 1.7976931348623157e+308;
  static constexpr double empty_key = -0x1p1023;
  static constexpr double log2_e_unscaled = 1.4426950408889634 * 0x1p27;
  // As above; relative error 1.2e-19.
  template <class Lane>
  static HPCM_HD Lane exp2_fraction(Lane f) {
    Lane p = f * 2.5729324177362304214e-11 + 4.455817908336064493e-10;
    p = p * f + 7.0548973041554992774e-9;
    p = p * f + 1.0178057087733941105e-7;
    p = p * f + 1.321548680870556279e-6;
    p = p * f + 0.000015252733841556772589;
    p = p * f + 0.00015403530393370733411;
    p = p * f + 0.0013333558146406470697;
    p = p * f + 0.0096181291076284794928;
    p = p * f + 0.055504108664821627039;
    p = p * f + 0.24022650695910071233;
    p = p * f + 0.69314718055994530925;
    return p * f + 1.0;
  }
};

template <class Lane>
using RealOf = typename LaneTraits<Lane>::Real;

template <class Lane>
HPCM_HD Lane splat(double x) {
  return LaneTraits<Lane>::splat(static_cast<RealOf<Lane>>(x));
}

template <class Lane, class Mask>
HPCM_HD Lane select(Mask mask, Lane a, Lane b) {
  return LaneTraits<Lane>::select(mask, a, b);
}

template <class Lane>
HPCM_HD Lane minus_magnitude(Lane x) {
  return select<Lane>(x < splat<Lane>(0), x, -x);
}

// e^{x * 2^27} for x <= 0, exactly 1 at 0 and exactly 0 below the smallest normal number; NaN stays NaN.
template <class Lane>
HPCM_HD Lane exp_scaled(Lane x) {
  using N = Numbers<RealOf<Lane>>;
  const Lane lowest = splat<Lane>(N::lowest_power);
  Lane z = x * splat<Lane>(N::log2_e_unscaled);
  z = select<Lane>(z < lowest, lowest, z);
  const Lane n = LaneTraits<Lane>::round_even(z);
  return N::template exp2_fraction<Lane>(z - n) * LaneTraits<Lane>::power_of_two(n);
}

// sum[0] = values, sum[1] = weights; with N = 4 also both weighted by distance, which is what d/dw needs.
template <class Lane, int N>
struct State {
  Lane key, distance, sum[N];
};

template <class Lane, int N>
HPCM_HD State<Lane, N> empty_state() {
  State<Lane, N> state;
  state.key = splat<Lane>(Numbers<RealOf<Lane>>::empty_key);
  state.distance = splat<Lane>(0);
  for (int n = 0; n < N; ++n) state.sum[n] = splat<Lane>(0);
  return state;
}

// `a`, moved `age` tokens further away, plus `b`.
template <class Lane, int N>
HPCM_HD State<Lane, N> merge(const State<Lane, N>& a, const State<Lane, N>& b, Lane decay, Lane age) {
  const Lane aged = a.distance + age;
  const Lane gap = (a.key - b.key) - decay * (aged - b.distance);
  const auto keep = gap >= splat<Lane>(0);
  const Lane weight = exp_scaled<Lane>(minus_magnitude<Lane>(gap));
  const Lane weight_a = select<Lane>(keep, splat<Lane>(1), weight);
  const Lane weight_b = select<Lane>(keep, weight, splat<Lane>(1));
  State<Lane, N> both;
  both.key = select<Lane>(keep, a.key, b.key);
  both.distance = select<Lane>(keep, aged, b.distance);
  for (int n = 0; n < 2; ++n) both.sum[n] = a.sum[n] * weight_a + b.sum[n] * weight_b;
  for (int n = 2; n < N; ++n) both.sum[n] = (a.sum[n] + age * a.sum[n - 2]) * weight_a + b.sum[n] * weight_b;
  return both;
}

// Extent of the tensors; every (B, T, C) tensor is contiguous.
struct Extent {
  int64_t batch, length, channels;
  int chunk;
  HPCM_HD int64_t chunks() const { return (length + chunk - 1) / chunk; }
  HPCM_HD int64_t token(int64_t b, int64_t t, int64_t c) const { return (b * length + t) * channels + c; }
  HPCM_HD int64_t begin(int64_t j) const { return j * chunk; }
  HPCM_HD int64_t end(int64_t j) const { return (j + 1) * chunk < length ? (j + 1) * chunk : length; }
};

// Where a thread works: batch b, chunk j, channels c ... c + live - 1.
struct Place {
  int64_t b, j, c;
  int live;
};

// Reads and writes of `live` neighbouring channels; biwkv4_cpu.cpp specialises it for vectors, biwkv4_cuda.cu for half
// types.
template <class Lane, class Element>
struct Access {
  static HPCM_HD void load(Lane& lane, const Element* from, int) { lane = *from; }
  static HPCM_HD void store(const Lane& lane, Element* to, int) { *to = lane; }
};

template <class Lane, class Element>
HPCM_HD void load(Lane& lane, const Element* from, int live) {
  Access<Lane, Element>::load(lane, from, live);
}

template <class Lane, class Element>
HPCM_HD void store(const Lane& lane, Element* to, int live) {
  Access<Lane, Element>::store(lane, to, live);
}

// Chunk states in global memory: [direction][field][batch][chunk][channel].
template <class Lane, int N>
struct Workspace {
  RealOf<Lane>* data;
  Extent extent;
  HPCM_HD int64_t index(int direction, int field, const Place& p) const {
    return (((direction * int64_t(N + 2) + field) * extent.batch + p.b) * extent.chunks() + p.j) * extent.channels +
           p.c;
  }
  HPCM_HD State<Lane, N> read(int direction, const Place& p) const {
    State<Lane, N> state;
    load(state.key, data + index(direction, 0, p), p.live);
    load(state.distance, data + index(direction, 1, p), p.live);
    for (int n = 0; n < N; ++n) load(state.sum[n], data + index(direction, 2 + n, p), p.live);
    return state;
  }
  HPCM_HD void write(int direction, const Place& p, const State<Lane, N>& state) const {
    store(state.key, data + index(direction, 0, p), p.live);
    store(state.distance, data + index(direction, 1, p), p.live);
    for (int n = 0; n < N; ++n) store(state.sum[n], data + index(direction, 2 + n, p), p.live);
  }
};

// The tokens of the forward scan: exponent k, value v, weight 1.
template <class Lane, int N, class Element>
struct KeyValues {
  const Element *k, *v;
  Extent extent;
  HPCM_HD State<Lane, N> at(const Place& p, int64_t t) const {
    State<Lane, N> token = empty_state<Lane, N>();
    load(token.key, k + extent.token(p.b, t, p.c), p.live);
    load(token.sum[0], v + extent.token(p.b, t, p.c), p.live);
    token.key = token.key * splat<Lane>(kExponentScale);
    token.sum[0] = token.sum[0] * splat<Lane>(kValueScale);
    token.sum[1] = splat<Lane>(1);
    return token;
  }
};

// The tokens of the gradient scan, written by `outputs_backward`: exponent minus that of y_t's denominator, values g/D
// and g*y/D.
template <class Lane>
struct Gradients {
  RealOf<Lane>* data;  // four (B, T, C) arrays: key, distance, sum[0], sum[1]
  Extent extent;
  HPCM_HD RealOf<Lane>* field(int n, const Place& p, int64_t t) const {
    return data + n * (extent.batch * extent.length * extent.channels) + extent.token(p.b, t, p.c);
  }
  HPCM_HD State<Lane, 2> at(const Place& p, int64_t t) const {
    State<Lane, 2> token;
    load(token.key, field(0, p, t), p.live);
    load(token.distance, field(1, p, t), p.live);
    load(token.sum[0], field(2, p, t), p.live);
    load(token.sum[1], field(3, p, t), p.live);
    return token;
  }
  HPCM_HD void write(const Place& p, int64_t t, const State<Lane, 2>& token) const {
    store(token.key, field(0, p, t), p.live);
    store(token.distance, field(1, p, t), p.live);
    store(token.sum[0], field(2, p, t), p.live);
    store(token.sum[1], field(3, p, t), p.live);
  }
};

template <class Lane>
HPCM_HD Lane load_exponent(const RealOf<Lane>* from, const Place& p) {
  Lane lane;
  load(lane, from + p.c, p.live);
  return lane * splat<Lane>(kExponentScale);
}

template <class Lane, int N, class Tokens>
HPCM_HD void summarise(const Tokens& tokens, const Workspace<Lane, N>& work, const RealOf<Lane>* w, const Place& p) {
  const Extent& extent = work.extent;
  const Lane decay = load_exponent<Lane>(w, p), one = splat<Lane>(1);
  State<Lane, N> past = empty_state<Lane, N>(), future = past;
  for (int64_t t = extent.begin(p.j); t < extent.end(p.j); ++t) past = merge(past, tokens.at(p, t), decay, one);
  for (int64_t t = extent.end(p.j) - 1; t >= extent.begin(p.j); --t)
    future = merge(future, tokens.at(p, t), decay, one);
  work.write(0, p, past);
  work.write(1, p, future);
}

template <class Lane, int N>
HPCM_HD void carry(const Workspace<Lane, N>& work, const RealOf<Lane>* w, Place p) {
  const Extent& extent = work.extent;
  const Lane decay = load_exponent<Lane>(w, p), age = splat<Lane>(extent.chunk);
  for (int direction = 0; direction < 2; ++direction) {
    State<Lane, N> run = empty_state<Lane, N>();
    for (int64_t n = 0; n < extent.chunks(); ++n) {
      p.j = direction == 0 ? n : extent.chunks() - 1 - n;
      const State<Lane, N> summary = work.read(direction, p);
      work.write(direction, p, run);
      run = merge(run, summary, decay, age);  // the short last chunk only ever meets an empty state
    }
  }
}

// The two halves of the sum at token t, its own term excluded, and the weights that its own term brings in.
template <class Lane, int N>
struct Total {
  State<Lane, N> others;
  Lane weight_others, weight_self, normaliser;
  decltype(Lane() >= Lane()) others_lead;
};

template <class Lane, int N>
HPCM_HD Total<Lane, N> total(const State<Lane, N>& past, const State<Lane, N>& future, Lane key, Lane decay,
                             Lane boost) {
  Total<Lane, N> all;
  all.others = merge(past, future, decay, splat<Lane>(0));
  const Lane gap = ((all.others.key - key) - decay * all.others.distance) - boost;
  all.others_lead = gap >= splat<Lane>(0);
  const Lane weight = exp_scaled<Lane>(minus_magnitude<Lane>(gap));
  all.weight_others = select<Lane>(all.others_lead, splat<Lane>(1), weight);
  all.weight_self = select<Lane>(all.others_lead, weight, splat<Lane>(1));
  all.normaliser = all.others.sum[1] * all.weight_others + all.weight_self;
  return all;
}

template <class Lane, class Element>
HPCM_HD void outputs_forward(const KeyValues<Lane, 2, Element>& tokens, const Workspace<Lane, 2>& work,
                             const RealOf<Lane>* w, const RealOf<Lane>* u, Element* y, const Place& p) {
  const Extent& extent = work.extent;
  const Lane decay = load_exponent<Lane>(w, p), boost = load_exponent<Lane>(u, p), one = splat<Lane>(1);
  const Lane largest = splat<Lane>(Numbers<RealOf<Lane>>::largest);
  const int64_t begin = extent.begin(p.j), end = extent.end(p.j);
  State<Lane, 2> future[kMaxChunk], run = work.read(1, p);
  for (int64_t t = end - 1; t >= begin; --t) {
    future[t - begin] = run;
    run = merge(run, tokens.at(p, t), decay, one);
  }
  run = work.read(0, p);  // from here on the past
  for (int64_t t = begin; t < end; ++t) {
    const State<Lane, 2> token = tokens.at(p, t);
    const Total<Lane, 2> all = total(run, future[t - begin], token.key, decay, boost);
    Lane result = (all.others.sum[0] * all.weight_others + token.sum[0] * all.weight_self) / all.normaliser;
    result = result * splat<Lane>(1 / kValueScale);
    result = select<Lane>(result > largest, largest, result);  // a mean of the largest numbers may round past them
    result = select<Lane>(result < -largest, -largest, result);
    store(result, y + extent.token(p.b, t, p.c), p.live);
    run = merge(run, token, decay, one);
  }
}

// First half of the backward pass: gradients of w and u (per chunk), the token's own share of those of k and v, and the
// gradient scan's tokens.
template <class Lane, class Element>
HPCM_HD void outputs_backward(const KeyValues<Lane, 4, Element>& tokens, const Workspace<Lane, 4>& work,
                              const RealOf<Lane>* w, const RealOf<Lane>* u, const Element* grad_y, RealOf<Lane>* grad_k,
                              RealOf<Lane>* grad_v, RealOf<Lane>* grad_w_parts, RealOf<Lane>* grad_u_parts,
                              const Gradients<Lane>& gradients, const Place& p) {
  const Extent& extent = work.extent;
  const Lane decay = load_exponent<Lane>(w, p), boost = load_exponent<Lane>(u, p), one = splat<Lane>(1);
  const int64_t begin = extent.begin(p.j), end = extent.end(p.j);
  State<Lane, 4> future[kMaxChunk], run = work.read(1, p);
  for (int64_t t = end - 1; t >= begin; --t) {
    future[t - begin] = run;
    run = merge(run, tokens.at(p, t), decay, one);
  }
  run = work.read(0, p);  // from here on the past
  Lane grad_w = splat<Lane>(0), grad_u = splat<Lane>(0);
  for (int64_t t = begin; t < end; ++t) {
    const State<Lane, 4> token = tokens.at(p, t);
    const Total<Lane, 4> all = total(run, future[t - begin], token.key, decay, boost);
    const int64_t at = extent.token(p.b, t, p.c);
    Lane grad;
    load(grad, grad_y + at, p.live);
    grad = grad / all.normaliser;
    const Lane value = (all.others.sum[0] * all.weight_others + token.sum[0] * all.weight_self) / all.normaliser;
    grad_w = grad_w - grad * ((all.others.sum[2] - value * all.others.sum[3]) * all.weight_others);
    const Lane own = grad * all.weight_self, own_k = own * (token.sum[0] - value);
    grad_u = grad_u + own_k;
    store(own, grad_v + at, p.live);
    store(own_k, grad_k + at, p.live);
    State<Lane, 2> emitted;
    emitted.key = -select<Lane>(all.others_lead, all.others.key, token.key + boost);
    emitted.distance = -select<Lane>(all.others_lead, all.others.distance, splat<Lane>(0));
    emitted.sum[0] = grad;
    emitted.sum[1] = grad * value;
    gradients.write(p, t, emitted);
    run = merge(run, token, decay, one);
  }
  const int64_t part = (p.b * extent.chunks() + p.j) * extent.channels + p.c;
  store(grad_w * splat<Lane>(1 / kValueScale), grad_w_parts + part, p.live);
  store(grad_u * splat<Lane>(1 / kValueScale), grad_u_parts + part, p.live);
}

// Second half: the gradients of every other token's output by this token's k and v.
template <class Lane, class Element>
HPCM_HD void outputs_gradients(const KeyValues<Lane, 2, Element>& tokens, const Gradients<Lane>& gradients,
                               const Workspace<Lane, 2>& work, const RealOf<Lane>* w, RealOf<Lane>* grad_k,
                               RealOf<Lane>* grad_v, const Place& p) {
  const Extent& extent = work.extent;
  const Lane decay = load_exponent<Lane>(w, p), one = splat<Lane>(1), zero = splat<Lane>(0);
  const int64_t begin = extent.begin(p.j), end = extent.end(p.j);
  for (int direction = 0; direction < 2; ++direction) {
    State<Lane, 2> run = work.read(direction, p);
    for (int64_t n = 0; n < end - begin; ++n) {
      const int64_t t = direction == 0 ? begin + n : end - 1 - n;
      const State<Lane, 2> token = tokens.at(p, t);
      const int64_t at = extent.token(p.b, t, p.c);
      Lane exponent =
          (token.key + run.key) - decay * run.distance;  // <= 0 up to rounding: no weight exceeds its denominator
      exponent = select<Lane>(exponent > zero, zero, exponent);
      const Lane weight = exp_scaled<Lane>(exponent);
      const Lane to_value = weight * run.sum[0];
      Lane grad_key, grad_value;
      load(grad_key, grad_k + at, p.live);
      load(grad_value, grad_v + at, p.live);
      grad_key = grad_key + (token.sum[0] * to_value - weight * run.sum[1]);
      grad_value = grad_value + to_value;
      if (direction == 1) grad_key = grad_key * splat<Lane>(1 / kValueScale);
      store(grad_key, grad_k + at, p.live);
      store(grad_value, grad_v + at, p.live);
      run = merge(run, gradients.at(p, t), decay, one);
    }
  }
}

// Adds the chunks' shares of one channel in a fixed order.
template <class Real>
HPCM_HD Real add_parts(const Real* parts, const Extent& extent, int64_t c) {
  double sum = 0;
  for (int64_t n = 0; n < extent.batch * extent.chunks(); ++n)
    sum += static_cast<double>(parts[n * extent.channels + c]);
  return static_cast<Real>(sum);
}

}  // namespace hpcm
