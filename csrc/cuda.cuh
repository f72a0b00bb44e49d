// What every CUDA kernel needs around it: device and stream, launch check, dtypes, loads and stores, reductions.
// torch's stable ABI and the CUDA runtime only, so one build serves every torch from 2.10 on, with or without a GPU.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <optional>
#include <tuple>
#include <type_traits>

// The stream's C shim lives in libtorch_cuda. Weak, so that the library also loads where only libtorch_cpu is.
#pragma weak aoti_torch_get_current_cuda_stream
extern "C" AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device, void** stream);

namespace distilldepth {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

inline void check(cudaError_t error, const char* op) {
  STD_TORCH_CHECK(error == cudaSuccess, op, ": CUDA error: ", cudaGetErrorString(error));
}

// Call after every launch; STD_CUDA_CHECK would need a symbol of libtorch_cuda.
inline void check_launch(const char* op) { check(cudaGetLastError(), op); }

// Makes a tensor's device the current one until the end of the scope.
class DeviceGuard {
 public:
  explicit DeviceGuard(const Tensor& tensor) : device_(tensor.get_device()) {
    check(cudaGetDevice(&previous_), "device guard");
    if (previous_ != device_) check(cudaSetDevice(device_), "device guard");
  }
  ~DeviceGuard() {
    if (previous_ != device_) cudaSetDevice(previous_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int device_;
  int previous_ = 0;
};

using StreamGetter = AOTITorchError (*)(int32_t device, void** stream);

// The loader binds the weak symbol only if this library was linked against libtorch: Python loads libtorch_cuda with
// local scope. Otherwise ask the copy that is already in the process.
inline StreamGetter stream_getter() {
  if (StreamGetter bound = &aoti_torch_get_current_cuda_stream) return bound;
  void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
  STD_TORCH_CHECK(library != nullptr, "the CUDA kernels need a torch with CUDA");
  void* symbol = dlsym(library, "aoti_torch_get_current_cuda_stream");
  STD_TORCH_CHECK(symbol != nullptr, "this torch does not say what its current CUDA stream is");
  return reinterpret_cast<StreamGetter>(symbol);
}

// torch's current stream on the tensor's device.
inline cudaStream_t current_stream(const Tensor& tensor) {
  static const StreamGetter getter = stream_getter();
  void* stream = nullptr;
  const AOTITorchError error = getter(tensor.get_device(), &stream);
  STD_TORCH_CHECK(error == 0, "torch has no current CUDA stream");
  return static_cast<cudaStream_t>(stream);
}

// An attribute of the tensor's device; asked for once per device, because the question is slow.
template <cudaDeviceAttr Attribute>
int device_attribute(const Tensor& tensor) {
  constexpr int kDevices = 64;
  static std::array<std::atomic<int>, kDevices> known{};  // 0 = not asked yet
  const int device = tensor.get_device();
  int value = device < kDevices ? known[device].load(std::memory_order_relaxed) : 0;
  if (value == 0) {
    check(cudaDeviceGetAttribute(&value, Attribute, device), "device attribute");
    if (device < kDevices) known[device].store(value, std::memory_order_relaxed);
  }
  return value;
}

inline int multiprocessors(const Tensor& tensor) {
  return device_attribute<cudaDevAttrMultiProcessorCount>(tensor);
}

inline Tensor new_empty(const Tensor& like, std::initializer_list<int64_t> shape, ScalarType dtype) {
  return torch::stable::new_empty(like, {shape.begin(), shape.size()}, dtype);
}

inline Tensor new_zeros(const Tensor& like, std::initializer_list<int64_t> shape, ScalarType dtype) {
  return torch::stable::new_zeros(like, {shape.begin(), shape.size()}, dtype);
}

// Acc: the type that maps of a dtype are computed in.
template <typename Map>
using acc_t = std::conditional_t<std::is_same_v<Map, double>, double, float>;

inline ScalarType acc_dtype(ScalarType map) { return map == ScalarType::Double ? map : ScalarType::Float; }

template <typename T>
struct TypeTag {
  using type = T;
};

// Calls `body(TypeTag<Map>)` with the C++ type of a floating dtype. Launch inside a template function that the body
// calls: `dispatch(dtype, "op", [&](auto tag) { launch<typename decltype(tag)::type>(...); });`
template <typename Body>
void dispatch(ScalarType dtype, const char* op, Body&& body) {
  switch (dtype) {
    case ScalarType::Float:
      return body(TypeTag<float>{});
    case ScalarType::Half:
      return body(TypeTag<__half>{});
    case ScalarType::BFloat16:
      return body(TypeTag<__nv_bfloat16>{});
    case ScalarType::Double:
      return body(TypeTag<double>{});
    default:
      STD_TORCH_CHECK(false, op, ": maps must be float32, float16, bfloat16 or float64");
  }
}

// torch owns the memory: a tensor of Half is the same bytes as __half.
template <typename T>
const T* const_data(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

template <typename T>
const T* const_data(const std::optional<Tensor>& tensor) {
  return tensor.has_value() ? const_data<T>(*tensor) : nullptr;
}

template <typename T>
T* mutable_data(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

__host__ __device__ constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

__device__ __forceinline__ float to_acc(float x) { return x; }
__device__ __forceinline__ double to_acc(double x) { return x; }
__device__ __forceinline__ float to_acc(__half x) { return __half2float(x); }
__device__ __forceinline__ float to_acc(__nv_bfloat16 x) { return __bfloat162float(x); }

template <typename Map>
__device__ __forceinline__ Map from_acc(acc_t<Map> x) {
  if constexpr (std::is_same_v<Map, __half>) {
    return __float2half_rn(x);
  } else if constexpr (std::is_same_v<Map, __nv_bfloat16>) {
    return __float2bfloat16_rn(x);
  } else {
    return x;
  }
}

template <typename Map>
__device__ __forceinline__ acc_t<Map> load(const Map* map, int64_t i) {
  return to_acc(map[i]);
}

template <typename Map>
__device__ __forceinline__ void store(Map* map, int64_t i, acc_t<Map> x) {
  map[i] = from_acc<Map>(x);
}

// N consecutive elements, moved in one instruction of up to 16 bytes (two or more if they are longer).
template <typename T, int N>
struct alignas(sizeof(T) * N < 16 ? sizeof(T) * N : 16) Pack {
  T x[N];
};

template <int N, typename T>
__device__ __forceinline__ Pack<T, N> load_pack(const T* map, int64_t i) {
  return *reinterpret_cast<const Pack<T, N>*>(map + i);
}

template <int N, typename T>
__device__ __forceinline__ void store_pack(T* map, int64_t i, const Pack<T, N>& pack) {
  *reinterpret_cast<Pack<T, N>*>(map + i) = pack;
}

template <typename T>
bool aligned(const T* pointer, int elements) {
  return reinterpret_cast<uintptr_t>(pointer) % (elements * sizeof(T)) == 0;
}

// Combines one value per lane; every lane gets the result. The order is fixed, so sums repeat bit by bit.
template <typename T, typename Combine>
__device__ __forceinline__ T warp_reduce(T x, Combine combine) {
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) x = combine(x, __shfl_xor_sync(kAllLanes, x, step));
  return x;
}

// Combines N values per thread of a one-dimensional block of kThreads, each with its like; every thread gets the
// results. Call with all threads. One call with N values costs two barriers, as one with a single value does.
template <int kThreads, typename T, int N, typename Combine>
__device__ __forceinline__ void block_reduce(T (&x)[N], Combine combine) {
  static_assert(kThreads % kWarp == 0 && kThreads <= 1024);
  constexpr int kWarps = kThreads / kWarp;
  __shared__ T per_warp[kWarps][N];
#pragma unroll
  for (int n = 0; n < N; ++n) x[n] = warp_reduce(x[n], combine);
  __syncthreads();  // an earlier call's readers are done
  if (threadIdx.x % kWarp == 0) {
#pragma unroll
    for (int n = 0; n < N; ++n) per_warp[threadIdx.x / kWarp][n] = x[n];
  }
  __syncthreads();
#pragma unroll
  for (int n = 0; n < N; ++n) {
    x[n] = per_warp[0][n];
#pragma unroll
    for (int w = 1; w < kWarps; ++w) x[n] = combine(x[n], per_warp[w][n]);
  }
}

template <int kThreads, typename T, typename Combine>
__device__ __forceinline__ T block_reduce(T x, Combine combine) {
  T one[1] = {x};
  block_reduce<kThreads>(one, combine);
  return one[0];
}

template <typename T>
struct Sum {
  __device__ __forceinline__ T operator()(T a, T b) const { return a + b; }
};

// Ignores NaN, as fmax does.
template <typename T>
struct Max {
  __device__ __forceinline__ T operator()(T a, T b) const {
    if constexpr (std::is_same_v<T, float>) {
      return fmaxf(a, b);
    } else if constexpr (std::is_same_v<T, double>) {
      return fmax(a, b);
    } else {
      return a > b ? a : b;
    }
  }
};

template <int kThreads, typename T>
__device__ __forceinline__ T block_sum(T x) {
  return block_reduce<kThreads>(x, Sum<T>{});
}

}  // namespace distilldepth
