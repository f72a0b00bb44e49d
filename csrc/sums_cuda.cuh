// Sums over contexts, what the loss and its gradient make of them, and the loss of the batch.
#pragma once

#include "atoms_cuda.cuh"

namespace distilldepth::normalise {

// Adds up `measure` over every context's pixels of a slice into `sums` (contexts,). `measure.begin(context)`, then
// `measure(i, x, y, n, first)` for every pixel. `per_warp` (2, levels, warps) is scratch. A thread adds few values
// before they go on in double.
template <int kThreads, typename Value, typename Measure>
__device__ void sum_contexts(
    const Plan& plan, const State<Value>& state, const Slice<Value>& slice, Measure measure, Partial* sums,
    Partial* per_warp) {
  constexpr int kWarps = kThreads / kWarp;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  for (int u = threadIdx.x; u < plan.contexts; u += kThreads) sums[u] = Partial();
  __syncthreads();
  const int atoms = state.atoms();
  for (int atom = 0, turn = 0; atom < atoms; ++atom) {
    const int begin = slice.run[atom], end = slice.run[atom + 1];
    if (begin == end) continue;
    // Two buffers in turn: one barrier per atom is enough.
    Partial* buffer = per_warp + (turn++ % 2) * plan.levels * kWarps;
    for (int level = 0; level < plan.levels; ++level) {
      Partial mine;
      if (begin + warp * kWarp < end) {
        measure.begin(state.context(plan, level, atom));
        Value x = 0, y = 0;
        for (int i = begin + threadIdx.x; i < end; i += kThreads) measure(i, x, y, mine.n, mine.first);
        mine.x = x;
        mine.y = y;
        mine = warp_sum(mine);
      }
      if (lane == 0) buffer[level * kWarps + warp] = mine;
    }
    __syncthreads();
    for (int level = warp; level < plan.levels; level += kWarps) {
      const Partial total = warp_sum(lane < kWarps ? buffer[level * kWarps + lane] : Partial());
      if (lane == 0) sums[state.context(plan, level, atom)].add(total);
    }
  }
  __syncthreads();
}

template <typename Value>
struct Deviations {
  const Plan& plan;
  const State<Value>& state;
  const Slice<Value>& slice;
  Value centers[2];

  __device__ void begin(int context) {
    centers[kPrediction] = value_of<Value>(state.queries[context].low);
    centers[kTarget] = value_of<Value>(state.queries[plan.contexts + context].low);
  }
  __device__ __forceinline__ void operator()(int i, Value& x, Value& y, int& n, unsigned& first) const {
    const Value deviation = slice.prediction[i] - centers[kPrediction];
    x += magnitude(deviation);
    y += magnitude(slice.target[i] - centers[kTarget]);
    n += sign_of(deviation);
    if (deviation == 0) first = min(first, static_cast<unsigned>(slice.first + slice.offset[i]));
  }
};

// N(prediction) - N(target); the same bits in every pass.
template <typename Value>
__device__ __forceinline__ Value difference(const Context<Value>& context, Value deviation, Value target) {
  return product(deviation, context.inverse_spread[kPrediction]) -
         product(target - context.center[kTarget], context.inverse_spread[kTarget]);
}

template <typename Value>
struct Signs {
  const State<Value>& state;
  const Slice<Value>& slice;
  Context<Value> context;

  __device__ void begin(int index) { context = state.contexts[index]; }
  __device__ __forceinline__ void operator()(int i, Value& x, Value& y, int& n, unsigned&) const {
    const Value deviation = slice.prediction[i] - context.center[kPrediction];
    const Value apart = difference(context, deviation, slice.target[i]);
    const int sign = sign_of(apart);
    x += sign * deviation;
    y += magnitude(apart);
    n += sign;
  }
};

// Center and spread of a context from the sums of the deviations.
template <typename Value>
__device__ void set_statistics(const Plan& plan, const State<Value>& state, int u, const Partial& sums) {
  Context<Value> context{};
  const double deviations[2] = {sums.x, sums.y};
#pragma unroll
  for (int map = 0; map < 2; ++map) {
    const Query<Value>& query = state.queries[map * plan.contexts + u];
    context.center[map] = value_of<Value>(query.low);
    if (query.count == 0) continue;
    const double spread = deviations[map] / query.count + plan.spread_eps;
    context.inverse_spread[map] = static_cast<Value>(1 / spread);
    if (map == kPrediction) state.spreads[u] = spread;
  }
  context.center_pixel = sums.first;
  state.contexts[u] = context;
  state.balance[u] = sums.n;
}

// What the loss of an image is divided by before it meets the others, and its gradient too.
__device__ __forceinline__ double image_divisor(const Plan& plan, unsigned count) {
  return plan.mean_per_image ? count : 1;
}

// Per context with n pixels, r = (p - c) / s, sigma_i = sign(r_i - N(t_i)) / divisor, A = sum sigma_i,
// Q = sum sigma_i (p_i - c), e_j = sign(p_j - c), and up to the scale that sum_images finds:
//   dL/dp_j = sigma_j / s - Q e_j / (s^2 n) + [j is the center pixel] (-A / s + Q sum_k e_k / (s^2 n))
// With slope = 1 / (divisor * s), q = the sign of Q, and rest = slope - |Q| / (s^2 n) > 0 this is
//   (sign_j - q e_j) slope + q e_j rest                                     for other pixels,
//   (sign_j + sum_k (q e_k - sign_k)) slope - q sum_k e_k rest              for the center pixel, whose e is 0.
// Where a context has few pixels, the maps nearly agree or the target hardly varies, |Q| is nearly n s / divisor and the
// multiples of slope are 0: what is left is small beside slope and must not be lost in rounding.
// Returns the context's share of the image's loss.
template <typename Value>
__device__ double set_coefficients(const State<Value>& state, int u, const Partial& sums, double divisor) {
  Context<Value>& context = state.contexts[u];
  const unsigned count = state.queries[u].count;
  if (count == 0) return 0;
  const double spread = state.spreads[u], slope = 1 / (divisor * spread);
  const int q = sums.x < 0 ? -1 : 1;
  const double rest = slope * (1 - q * sums.x / (spread * count));
  context.slope = static_cast<Value>(slope);
  context.rest = static_cast<Value>(q * rest);
  context.share = static_cast<Value>(-q * state.balance[u] * rest);
  state.balance[u] = q * state.balance[u] - sums.n;
  return sums.y / divisor;
}

// `gradient` (images, pixels) of the valid pixels of a slice.
template <int kThreads, typename Value>
__device__ void write_gradient(
    const Plan& plan, const State<Value>& state, const Slice<Value>& slice, int64_t image, Value* gradient) {
  constexpr int kBatch = kGradientBatch;
  gradient += image * plan.pixels + slice.first;
  const int atoms = state.atoms();
  for (int atom = 0; atom < atoms; ++atom) {
    const int end = slice.run[atom + 1];
    for (int base = slice.run[atom] + threadIdx.x; base < end; base += kBatch * kThreads) {
      Value predictions[kBatch], targets[kBatch], gradients[kBatch];
      unsigned offsets[kBatch];
#pragma unroll
      for (int k = 0; k < kBatch; ++k) {
        const int i = min(base + k * kThreads, end - 1);
        predictions[k] = slice.prediction[i];
        targets[k] = slice.target[i];
        offsets[k] = slice.offset[i];
        gradients[k] = 0;
      }
      for (int level = 0; level < plan.levels; ++level) {
        const int u = state.context(plan, level, atom);
        const Context<Value> context = state.contexts[u];
#pragma unroll
        for (int k = 0; k < kBatch; ++k) {
          const Value deviation = predictions[k] - context.center[kPrediction];
          const int sign = sign_of(difference(context, deviation, targets[k])), side = sign_of(deviation);
          int slopes = context.rest < 0 ? sign + side : sign - side;
          Value rest = side * context.rest;
          if (slice.first + offsets[k] == context.center_pixel) {
            slopes = sign + state.balance[u];
            rest = context.share;
          }
          gradients[k] += slopes * context.slope + rest;
        }
      }
#pragma unroll
      for (int k = 0; k < kBatch; ++k) {
        if (base + k * kThreads < end) gradient[offsets[k]] = gradients[k];
      }
    }
  }
}

extern __shared__ __align__(16) unsigned char shared_memory[];

// The loss of the batch from those of the images (images,), in a fixed order, and the scale that every gradient lacks:
// 1 / (levels * M), with M the valid pixels of the batch, or its images that have one.
template <int kThreads, typename Value>
__global__ void __launch_bounds__(kThreads)
sum_images(Plan plan, const ImageLoss* images, Value* loss, Value* scale) {
  double sums[2] = {0, 0};  // losses, M
  for (int64_t image = threadIdx.x; image < plan.images; image += kThreads) {
    const ImageLoss one = images[image];
    sums[0] += one.sum;
    sums[1] += plan.mean_per_image ? one.count > 0 : one.count;
  }
  block_reduce<kThreads>(sums, Sum<double>{});
  if (threadIdx.x != 0) return;
  const double divisor = plan.levels * (sums[1] > 0 ? sums[1] : 1);
  *loss = static_cast<Value>(sums[0] / divisor);
  *scale = static_cast<Value>(1 / divisor);
}

}  // namespace distilldepth::normalise
