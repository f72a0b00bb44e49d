// Stands for CUDA's header of this name. What is missing here does not compile: nothing is silently left out.
#pragma once

#include <math.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>

#include "emulator.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __restrict__ __restrict
#define __launch_bounds__(...)
#define __align__(BYTES_) alignas(BYTES_)

#define threadIdx (cuda_emulation::current->index)
#define blockIdx (cuda_emulation::current->block_index)
constexpr int warpSize = 32;

#define __syncthreads() static_cast<void>(cuda_emulation::sync_block("__syncthreads", CUDA_EMULATION_SITE))
#define __syncthreads_or(X_) \
  cuda_emulation::sync_block("__syncthreads_or", CUDA_EMULATION_SITE, cuda_emulation::Vote::any, (X_) != 0)
#define __syncthreads_and(X_) \
  cuda_emulation::sync_block("__syncthreads_and", CUDA_EMULATION_SITE, cuda_emulation::Vote::all, (X_) != 0)
#define __syncthreads_count(X_) \
  cuda_emulation::sync_block("__syncthreads_count", CUDA_EMULATION_SITE, cuda_emulation::Vote::count, (X_) != 0)

namespace cuda_emulation {
template <typename T>
T shuffle_from(unsigned mask, const char* operation, Site site, T x, unsigned source, unsigned width = 32) {
  return shuffle(mask, x, lane_of(source, width), operation, site);
}
template <typename T>
T shuffle_across(unsigned mask, const char* operation, Site site, T x, unsigned bits, unsigned width = 32) {
  return shuffle(mask, x, lane_across(bits, width), operation, site);
}
template <typename T>
T shuffle_up(unsigned mask, const char* operation, Site site, T x, unsigned step, unsigned width = 32) {
  return shuffle(mask, x, lane_below(step, width), operation, site);
}
template <typename T>
T shuffle_down(unsigned mask, const char* operation, Site site, T x, unsigned step, unsigned width = 32) {
  return shuffle(mask, x, lane_above(step, width), operation, site);
}
inline void sync_lanes(Site site, unsigned mask = 0xffffffffu) {
  leave(meet(mask, "__syncwarp", site, nullptr, 0));
}
}  // namespace cuda_emulation

#define __syncwarp(...) cuda_emulation::sync_lanes(CUDA_EMULATION_SITE __VA_OPT__(, ) __VA_ARGS__)
#define __shfl_sync(MASK_, ...) cuda_emulation::shuffle_from(MASK_, "__shfl_sync", CUDA_EMULATION_SITE, __VA_ARGS__)
#define __shfl_xor_sync(MASK_, ...) \
  cuda_emulation::shuffle_across(MASK_, "__shfl_xor_sync", CUDA_EMULATION_SITE, __VA_ARGS__)
#define __shfl_up_sync(MASK_, ...) \
  cuda_emulation::shuffle_up(MASK_, "__shfl_up_sync", CUDA_EMULATION_SITE, __VA_ARGS__)
#define __shfl_down_sync(MASK_, ...) \
  cuda_emulation::shuffle_down(MASK_, "__shfl_down_sync", CUDA_EMULATION_SITE, __VA_ARGS__)
#define __match_any_sync(MASK_, X_) cuda_emulation::match(MASK_, X_, "__match_any_sync", CUDA_EMULATION_SITE)
#define __ballot_sync(MASK_, X_) cuda_emulation::ballot(MASK_, (X_) != 0, "__ballot_sync", CUDA_EMULATION_SITE)
#define __any_sync(MASK_, X_) (cuda_emulation::ballot(MASK_, (X_) != 0, "__any_sync", CUDA_EMULATION_SITE) != 0)
#define __all_sync(MASK_, X_) (cuda_emulation::ballot(MASK_, (X_) == 0, "__all_sync", CUDA_EMULATION_SITE) == 0)
#define CUDA_EMULATION_REDUCE(MASK_, X_, NAME_, COMBINE_) \
  cuda_emulation::reduce_lanes(MASK_, X_, [](auto a, auto b) { return COMBINE_; }, NAME_, CUDA_EMULATION_SITE)
#define __reduce_add_sync(MASK_, X_) CUDA_EMULATION_REDUCE(MASK_, X_, "__reduce_add_sync", a + b)
#define __reduce_min_sync(MASK_, X_) CUDA_EMULATION_REDUCE(MASK_, X_, "__reduce_min_sync", b < a ? b : a)
#define __reduce_max_sync(MASK_, X_) CUDA_EMULATION_REDUCE(MASK_, X_, "__reduce_max_sync", a < b ? b : a)
#define __reduce_and_sync(MASK_, X_) CUDA_EMULATION_REDUCE(MASK_, X_, "__reduce_and_sync", a & b)
#define __reduce_or_sync(MASK_, X_) CUDA_EMULATION_REDUCE(MASK_, X_, "__reduce_or_sync", a | b)
#define __reduce_xor_sync(MASK_, X_) CUDA_EMULATION_REDUCE(MASK_, X_, "__reduce_xor_sync", a ^ b)

// Memory is strongly ordered here: fences only let others run.
inline void __threadfence() { cuda_emulation::preempt(); }
inline void __threadfence_block() { cuda_emulation::preempt(); }
inline void __threadfence_system() { cuda_emulation::preempt(); }
inline void __nanosleep(unsigned) { cuda_emulation::preempt(); }

namespace cuda_emulation {
template <typename T, typename Change>
T change(T* at, Change change) {
  preempt();
  count_atomic(at);
  const T old = *at;
  *at = change(old);
  return old;
}
}  // namespace cuda_emulation

#define CUDA_EMULATION_ATOMIC(NAME_, TYPE_, NEW_) \
  inline TYPE_ NAME_(TYPE_* at, TYPE_ x) {        \
    return cuda_emulation::change(at, [=](TYPE_ old) -> TYPE_ { return NEW_; }); \
  }
#define CUDA_EMULATION_ATOMICS(TYPE_)                           \
  CUDA_EMULATION_ATOMIC(atomicMin, TYPE_, x < old ? x : old)    \
  CUDA_EMULATION_ATOMIC(atomicMax, TYPE_, old < x ? x : old)    \
  CUDA_EMULATION_ATOMIC(atomicAnd, TYPE_, old & x)              \
  CUDA_EMULATION_ATOMIC(atomicOr, TYPE_, old | x)               \
  CUDA_EMULATION_ATOMIC(atomicXor, TYPE_, old ^ x)              \
  CUDA_EMULATION_ATOMIC(atomicExch, TYPE_, x)                   \
  inline TYPE_ atomicCAS(TYPE_* at, TYPE_ compare, TYPE_ x) {   \
    return cuda_emulation::change(at, [=](TYPE_ old) -> TYPE_ { return old == compare ? x : old; }); \
  }
// The types that CUDA has, no others: what does not compile there must not compile here.
CUDA_EMULATION_ATOMICS(int)
CUDA_EMULATION_ATOMICS(unsigned)
CUDA_EMULATION_ATOMICS(unsigned long long)
CUDA_EMULATION_ATOMIC(atomicMin, long long, x < old ? x : old)
CUDA_EMULATION_ATOMIC(atomicMax, long long, old < x ? x : old)
CUDA_EMULATION_ATOMIC(atomicExch, float, x)
CUDA_EMULATION_ATOMIC(atomicAdd, unsigned, old + x)
CUDA_EMULATION_ATOMIC(atomicAdd, int, static_cast<int>(static_cast<unsigned>(old) + static_cast<unsigned>(x)))
CUDA_EMULATION_ATOMIC(atomicAdd, unsigned long long, old + x)
CUDA_EMULATION_ATOMIC(atomicAdd, float, old + x)
CUDA_EMULATION_ATOMIC(atomicAdd, double, old + x)
CUDA_EMULATION_ATOMIC(atomicSub, unsigned, old - x)
CUDA_EMULATION_ATOMIC(atomicInc, unsigned, old >= x ? 0 : old + 1)
#undef CUDA_EMULATION_ATOMIC
#undef CUDA_EMULATION_ATOMICS

#define CUDA_EMULATION_LOAD(NAME_) \
  template <typename T>            \
  T NAME_(const T* at) {           \
    return *at;                    \
  }
CUDA_EMULATION_LOAD(__ldg)
CUDA_EMULATION_LOAD(__ldca)
CUDA_EMULATION_LOAD(__ldcs)
CUDA_EMULATION_LOAD(__ldlu)
#undef CUDA_EMULATION_LOAD
// Past the L1 cache: how a block reads what others wrote, perhaps until it is there.
template <typename T>
T __ldcg(const T* at) {
  cuda_emulation::preempt();
  return *at;
}
template <typename T>
T __ldcv(const T* at) {
  cuda_emulation::preempt();
  return *at;
}
#define CUDA_EMULATION_STORE(NAME_)               \
  template <typename T>                           \
  void NAME_(T* at, std::type_identity_t<T> x) {  \
    *at = x;                                      \
  }
CUDA_EMULATION_STORE(__stwb)
CUDA_EMULATION_STORE(__stcg)
CUDA_EMULATION_STORE(__stcs)
CUDA_EMULATION_STORE(__stwt)
#undef CUDA_EMULATION_STORE

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline int __clz(int x) { return x ? __builtin_clz(static_cast<unsigned>(x)) : 32; }
inline int __clzll(long long x) { return x ? __builtin_clzll(static_cast<unsigned long long>(x)) : 64; }
inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>(uint64_t{a} * b >> 32); }

namespace cuda_emulation {
template <typename To, typename From>
To same_bits(From x) {
  static_assert(sizeof(To) == sizeof(From));
  To y;
  memcpy(&y, &x, sizeof(y));
  return y;
}
// Out of the compiler's sight, which would otherwise fuse a product with the sum that it goes into.
template <typename T>
T rounded(T x) {
  volatile T kept = x;
  return kept;
}
}  // namespace cuda_emulation

inline unsigned __float_as_uint(float x) { return cuda_emulation::same_bits<unsigned>(x); }
inline int __float_as_int(float x) { return cuda_emulation::same_bits<int>(x); }
inline float __uint_as_float(unsigned x) { return cuda_emulation::same_bits<float>(x); }
inline float __int_as_float(int x) { return cuda_emulation::same_bits<float>(x); }
inline long long __double_as_longlong(double x) { return cuda_emulation::same_bits<long long>(x); }
inline double __longlong_as_double(long long x) { return cuda_emulation::same_bits<double>(x); }

inline float __fadd_rn(float a, float b) { return cuda_emulation::rounded(a + b); }
inline float __fsub_rn(float a, float b) { return cuda_emulation::rounded(a - b); }
inline float __fmul_rn(float a, float b) { return cuda_emulation::rounded(a * b); }
inline float __fdiv_rn(float a, float b) { return cuda_emulation::rounded(a / b); }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __frcp_rn(float x) { return 1 / x; }
inline float __fsqrt_rn(float x) { return std::sqrt(x); }
inline double __dadd_rn(double a, double b) { return cuda_emulation::rounded(a + b); }
inline double __dsub_rn(double a, double b) { return cuda_emulation::rounded(a - b); }
inline double __dmul_rn(double a, double b) { return cuda_emulation::rounded(a * b); }
inline double __ddiv_rn(double a, double b) { return cuda_emulation::rounded(a / b); }
inline double __fma_rn(double a, double b, double c) { return std::fma(a, b, c); }
// Exact here: what the fast ones lose is seen on a GPU only.
inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline float __log2f(float x) { return std::log2(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __saturatef(float x) { return x > 0 ? (x < 1 ? x : 1) : 0; }
inline float rsqrtf(float x) { return 1 / std::sqrt(x); }

template <typename A, typename B>
constexpr std::common_type_t<A, B> min(A a, B b) {
  using Common = std::common_type_t<A, B>;
  if constexpr (std::is_floating_point_v<Common>) return std::fmin(Common(a), Common(b));
  return Common(b) < Common(a) ? Common(b) : Common(a);
}
template <typename A, typename B>
constexpr std::common_type_t<A, B> max(A a, B b) {
  using Common = std::common_type_t<A, B>;
  if constexpr (std::is_floating_point_v<Common>) return std::fmax(Common(a), Common(b));
  return Common(a) < Common(b) ? Common(b) : Common(a);
}

#define CUDA_EMULATION_VECTORS(TYPE_, NAME_)                                                          \
  struct alignas(2 * sizeof(TYPE_)) NAME_##2 { TYPE_ x, y; };                                         \
  struct alignas(4 * sizeof(TYPE_) > 16 ? 16 : 4 * sizeof(TYPE_)) NAME_##4 { TYPE_ x, y, z, w; };     \
  inline NAME_##2 make_##NAME_##2(TYPE_ x, TYPE_ y) { return {x, y}; }                                \
  inline NAME_##4 make_##NAME_##4(TYPE_ x, TYPE_ y, TYPE_ z, TYPE_ w) { return {x, y, z, w}; }
CUDA_EMULATION_VECTORS(float, float)
CUDA_EMULATION_VECTORS(double, double)
CUDA_EMULATION_VECTORS(int, int)
CUDA_EMULATION_VECTORS(unsigned, uint)
CUDA_EMULATION_VECTORS(unsigned char, uchar)
CUDA_EMULATION_VECTORS(unsigned short, ushort)
#undef CUDA_EMULATION_VECTORS

// The runtime.

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1 };
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount = 16, cudaDevAttrMaxSharedMemoryPerBlockOptin = 97 };
enum cudaFuncAttribute {
  cudaFuncAttributeMaxDynamicSharedMemorySize = 8,
  cudaFuncAttributeNonPortableClusterSizeAllowed = 14
};
enum cudaLaunchAttributeID { cudaLaunchAttributeClusterDimension = 4 };
enum cudaMemcpyKind { cudaMemcpyDeviceToHost = 2 };
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct {
    struct {
      unsigned x, y, z;
    } clusterDim;
  } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
  cudaLaunchAttribute* attrs = nullptr;
  unsigned numAttrs = 0;
};
struct cudaFuncAttributes {
  int ptxVersion, binaryVersion;
};

inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t error) { return error == cudaSuccess ? "no error" : "invalid value"; }
inline cudaError_t cudaGetDevice(int* device) {
  *device = cuda_emulation::current_device();
  return cudaSuccess;
}
inline cudaError_t cudaSetDevice(int device) {
  return device == cuda_emulation::current_device() ? cudaSuccess : cudaErrorInvalidValue;
}
inline cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) {
  cuda_emulation::count_memset(bytes);
  memset(to, value, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t) {
  memcpy(to, from, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  const auto& gpu = cuda_emulation::gpu(device);
  *value = attribute == cudaDevAttrMultiProcessorCount ? gpu.processors : gpu.shared;
  return cudaSuccess;
}
inline cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  if (attribute == cudaFuncAttributeNonPortableClusterSizeAllowed) {
    cuda_emulation::allow_large_clusters(kernel);
    return cudaSuccess;
  }
  if (value > cuda_emulation::gpu(cuda_emulation::current_device()).shared) return cudaErrorInvalidValue;
  cuda_emulation::allow_shared(kernel, value);
  return cudaSuccess;
}
inline cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void*) {
  const int architecture = cuda_emulation::gpu(cuda_emulation::current_device()).architecture;
  *attributes = {architecture, architecture};
  return cudaSuccess;
}

namespace cuda_emulation {
inline unsigned cluster_of(const cudaLaunchConfig_t& config) {
  unsigned size = 1;
  for (unsigned i = 0; i < config.numAttrs; ++i) {
    const auto& clusters = config.attrs[i].val.clusterDim;
    if (clusters.y != 1 || clusters.z != 1) fail("clusters of more than one dimension are not emulated");
    size = clusters.x;
  }
  return size;
}
}  // namespace cuda_emulation

inline cudaError_t cudaOccupancyMaxActiveClusters(int* clusters, const void*, const cudaLaunchConfig_t* config) {
  const auto& gpu = cuda_emulation::gpu(cuda_emulation::current_device());
  const unsigned size = cuda_emulation::cluster_of(*config);
  const bool fits = (gpu.clusters & size) != 0 && config->dynamicSmemBytes <= static_cast<size_t>(gpu.shared);
  *clusters = fits ? gpu.processors / static_cast<int>(size) : 0;
  return cudaSuccess;
}
template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(
    const cudaLaunchConfig_t* config, void (*kernel)(Parameters...), Arguments&&... arguments) {
  const cuda_emulation::Config own{config->gridDim, config->blockDim, config->dynamicSmemBytes, config->stream,
                                   cuda_emulation::cluster_of(*config)};
  cuda_emulation::launch(own, kernel, std::forward<Arguments>(arguments)...);
  return cudaSuccess;
}
