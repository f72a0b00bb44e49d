// What the CPU kernels share: element types, parallel loops and sums whose result does not depend on the number of
// threads, and the tensors that they make.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstdint>
#include <exception>
#include <mutex>
#include <optional>
#include <type_traits>

namespace distilldepth {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;
using torch::headeronly::IntHeaderOnlyArrayRef;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// The type of sums, losses and gradients for maps of type Element.
template <class Element>
using Accumulator = std::conditional_t<std::is_same_v<Element, double>, double, float>;

template <class Element>
inline constexpr ScalarType accumulator_dtype =
    std::is_same_v<Element, double> ? ScalarType::Double : ScalarType::Float;

inline float load(float value) { return value; }
inline double load(double value) { return value; }
inline float load(BFloat16 value) { return std::bit_cast<float>(uint32_t{value.x} << 16); }
// Branch-free, so that a loop over it becomes vector code; the conversion of torch/headeronly does not.
inline float load(Half value) {
  const uint32_t sign = uint32_t{value.x} << 16 & 0x80000000u;
  const uint32_t rest = value.x & 0x7fffu;
  const uint32_t subnormal = std::bit_cast<uint32_t>(static_cast<float>(static_cast<int32_t>(rest)) * 0x1p-24f);
  const uint32_t normal = (rest << 13) + (rest >= 0x7c00u ? 0x70000000u : 0x38000000u);
  return std::bit_cast<float>(sign | (rest < 0x0400u ? subnormal : normal));
}

inline float store_as(float value, float) { return value; }
inline double store_as(double value, double) { return value; }
// Rounded to nearest, ties to even; branch-free as `load`.
inline BFloat16 store_as(float value, BFloat16 result) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
  result.x = static_cast<uint16_t>(std::isnan(value) ? 0x7fc0u : rounded);
  return result;
}
inline Half store_as(float value, Half result) {
  const uint32_t bits = std::bit_cast<uint32_t>(value), size = bits & 0x7fffffffu;
  const uint32_t normal = (size + 0xfffu + (size >> 13 & 1u) - 0x38000000u) >> 13;
  // Next to 1/2 the last bit of a float is the smallest number of 16 bits.
  const uint32_t subnormal = std::bit_cast<uint32_t>(std::bit_cast<float>(size) + 0.5f) - 0x3f000000u;
  const uint32_t finite = size < 0x38800000u ? subnormal : normal;
  const uint32_t large = size > 0x7f800000u ? 0x7e00u : 0x7c00u;
  result.x = static_cast<uint16_t>((bits >> 16 & 0x8000u) | (size < 0x477ff000u ? finite : large));
  return result;
}

// f.template operator()<Element>() for the element type of a floating tensor.
template <class F>
decltype(auto) dispatch(const char* op, ScalarType dtype, F&& f) {
  switch (dtype) {
    case ScalarType::Float:
      return f.template operator()<float>();
    case ScalarType::Double:
      return f.template operator()<double>();
    case ScalarType::Half:
      return f.template operator()<Half>();
    case ScalarType::BFloat16:
      return f.template operator()<BFloat16>();
    default:
      STD_TORCH_CHECK(false, op, ": maps must be float32, float64, float16 or bfloat16, got ", toString(dtype));
  }
}

// f(task) for every task in [0, tasks), on torch's threads. A thread takes the next `grain` tasks when it is free, so
// tasks may differ in length; which thread runs a task is not defined, so a task writes only what belongs to it.
template <class F>
void parallel_tasks(int64_t tasks, const F& f, int64_t grain = 1) {
  if (tasks <= 0) return;
  std::atomic<int64_t> next{0};
  std::exception_ptr failure;
  std::mutex failing;
  torch::stable::parallel_for(0, (tasks + grain - 1) / grain, 1, [&](int64_t, int64_t) {
    // Exceptions must not cross the C interface that calls this.
    try {
      for (int64_t task; (task = next.fetch_add(grain, std::memory_order_relaxed)) < tasks;) {
        for (const int64_t end = std::min(tasks, task + grain); task < end; ++task) f(task);
      }
    } catch (...) {
      next.store(tasks);
      const std::lock_guard<std::mutex> lock(failing);
      if (!failure) failure = std::current_exception();
    }
  });
  if (failure) std::rethrow_exception(failure);
}

// A sum kept in independent lanes: the compiler may use vectors and the order of additions is fixed by the source.
inline constexpr int kLanes = 16;

template <class T, int lane_count, class Join>
T fold_lanes(const T (&lanes)[lane_count], const Join& join) {
  static_assert(lane_count % 2 == 0 || lane_count == 1);
  if constexpr (lane_count == 1) {
    return lanes[0];
  } else {
    T half[lane_count / 2];
    for (int i = 0; i < lane_count / 2; ++i) half[i] = join(lanes[i], lanes[i + lane_count / 2]);
    return fold_lanes(half, join);
  }
}

template <class T, int lane_count>
T sum_lanes(const T (&lanes)[lane_count]) {
  return fold_lanes(lanes, [](T a, T b) { return a + b; });
}

// Bool tensors as bytes; null for None.
inline const uint8_t* valid_data(const std::optional<Tensor>& valid) {
  return valid ? reinterpret_cast<const uint8_t*>(valid->const_data_ptr<bool>()) : nullptr;
}

// An uninitialised tensor on the CPU.
inline Tensor make(IntHeaderOnlyArrayRef sizes, ScalarType dtype) { return torch::stable::empty(sizes, dtype); }

// A 0-dimensional tensor.
template <class T>
Tensor make_scalar(T value, ScalarType dtype) {
  Tensor result = make({}, dtype);
  if (dtype == ScalarType::Double) {
    *result.mutable_data_ptr<double>() = static_cast<double>(value);
  } else {
    *result.mutable_data_ptr<float>() = static_cast<float>(value);
  }
  return result;
}

}  // namespace distilldepth
