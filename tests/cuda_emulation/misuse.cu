// Mistakes that the emulation must notice, one kernel each, and a few rights that it must grant.
#include <cooperative_groups.h>
#include <cuda_runtime.h>

#include <cstdio>
#include <exception>
#include <map>
#include <string>

namespace {

constexpr int kThreads = 64;
constexpr unsigned kAllLanes = 0xffffffffu;

extern __shared__ __align__(16) unsigned char dynamic[];

__global__ void different_barriers(float*) {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

__global__ void ends_before_a_barrier(float*) {
  if (threadIdx.x == 5) return;
  __syncthreads();
}

__global__ void lane_ends(float* out) {
  if (threadIdx.x == 7) return;
  out[0] = __shfl_xor_sync(kAllLanes, 1.0f, 1);
}

__global__ void lane_is_not_in_its_mask(float*) { __syncwarp(1u); }

__global__ void lanes_at_different_operations(float* out) {
  if (threadIdx.x % 2) {
    out[0] = __shfl_xor_sync(kAllLanes, 1.0f, 1);
  } else {
    out[1] = static_cast<float>(__ballot_sync(kAllLanes, true));
  }
}

__global__ void lanes_wait_for_a_barrier_that_waits_for_them(float*) {
  if (threadIdx.x % 32 < 16) {
    __syncthreads();
  } else {
    __syncwarp();
  }
}

__global__ void beyond_dynamic_shared_memory(float* out) {
  out[0] = reinterpret_cast<float*>(dynamic)[threadIdx.x + (threadIdx.x == 63)];
}

__global__ void before_dynamic_shared_memory(float*) { dynamic[-1 - static_cast<int>(threadIdx.x)] = 0; }

__global__ void beyond_a_shared_variable(float* out) {
  __shared__ float values[2][kThreads], last;
  (&values[0][0])[threadIdx.x * 2 + 1] = 1;
  float* after = &last + 1;
  out[threadIdx.x] = after[threadIdx.x == 9];
}

// Only the sanitized build notices.
__global__ void misaligned_vector(float* out) {
  __shared__ float values[kThreads];
  values[threadIdx.x] = 1;
  __syncthreads();
  if (threadIdx.x == 0) out[0] = reinterpret_cast<const float4*>(values + 1)->x;
}

__global__ void beyond_a_tensor(float* out) { out[threadIdx.x + (threadIdx.x == 63)] = 1; }

__global__ void null_pointer(float* out) { out[0] = *static_cast<float*>(nullptr); }

__device__ int deep(volatile int depth) { return depth == 0 ? 0 : deep(depth - 1) + depth; }
__global__ void beyond_the_stack(float* out) { out[0] = static_cast<float>(deep(1 << 24)); }

// No block may end while another reads its shared memory.
__global__ void reads_a_block_that_has_ended(float* out) {
  auto cluster = cooperative_groups::this_cluster();
  auto* mine = reinterpret_cast<float*>(dynamic);
  if (threadIdx.x == 0) *mine = 1;
  cluster.sync();
  out[threadIdx.x] = *cluster.map_shared_rank(mine, 1 - cluster.block_rank());
}

// The pointer may be kept, what it points to is gone.
__global__ void keeps_a_pointer_to_a_block_that_has_ended(float* out) {
  auto cluster = cooperative_groups::this_cluster();
  auto* mine = reinterpret_cast<float*>(dynamic);
  if (threadIdx.x == 0) *mine = 1;
  cluster.sync();
  float* other = cluster.map_shared_rank(mine, 1 - cluster.block_rank());
  cluster.sync();
  if (cluster.block_rank() == 1) return;
  for (int i = 0; i < 2000; ++i) out[threadIdx.x] += *other + __ldcg(out);
}

__global__ void maps_a_block_that_may_not_have_begun(float* out) {
  auto cluster = cooperative_groups::this_cluster();
  auto* other = cluster.map_shared_rank(reinterpret_cast<float*>(dynamic), 1 - cluster.block_rank());
  cluster.sync();
  out[0] = static_cast<float>(other == nullptr);
  cluster.sync();
}

__global__ void __launch_bounds__(32) more_threads_than_the_bounds(float*) {}

__global__ void right(float*) {}
__global__ void calls_a_kernel(float* out) { right(out); }

// Rights: two halves of a warp by themselves, unread lanes that end, a barrier's votes, a wait for another block, and
// shared memory that is not what it was.
__global__ void grants(float* out) {
  __shared__ int count;
  __shared__ float unwritten[2];
  if (threadIdx.x == 0) count = 0;
  const bool nan = unwritten[threadIdx.x % 2] != unwritten[threadIdx.x % 2];
  if (!__syncthreads_and(nan)) return;
  const unsigned half = threadIdx.x % 32 < 16 ? 0xffffu : 0xffff0000u;
  int sum = 1;
  if (half == 0xffffu) {
    for (int step = 8; step > 0; step /= 2) sum += __shfl_down_sync(half, sum, step, 16);
  } else {
    for (int step = 1; step < 16; step *= 2) sum += __shfl_xor_sync(half, sum, step);
  }
  if (threadIdx.x % 16 == 0) atomicAdd(&count, sum);
  if (__syncthreads_count(threadIdx.x < 3) != 3) return;
  auto* turn = reinterpret_cast<unsigned*>(out + 1);
  if (threadIdx.x == 0) {
    // The last block is not waited for by any other.
    while (atomicAdd(turn, 0u) != gridDim.x - 1 - blockIdx.x) {
    }
    out[0] += static_cast<float>(count);
    __threadfence();
    atomicAdd(turn, 1u);
  }
}

struct Launch {
  void (*kernel)(float*);
  unsigned grid = 2, block = kThreads, cluster = 1;
  size_t shared = kThreads * sizeof(float);
};

const std::map<std::string, Launch>& launches() {
  static const std::map<std::string, Launch> all = {
      {"different_barriers", {different_barriers}},
      {"ends_before_a_barrier", {ends_before_a_barrier}},
      {"lane_ends", {lane_ends}},
      {"lane_is_not_in_its_mask", {lane_is_not_in_its_mask}},
      {"lanes_at_different_operations", {lanes_at_different_operations}},
      {"lanes_wait_for_a_barrier_that_waits_for_them", {lanes_wait_for_a_barrier_that_waits_for_them}},
      {"beyond_dynamic_shared_memory", {beyond_dynamic_shared_memory}},
      {"before_dynamic_shared_memory", {before_dynamic_shared_memory}},
      {"beyond_a_shared_variable", {beyond_a_shared_variable}},
      {"misaligned_vector", {misaligned_vector}},
      {"beyond_a_tensor", {beyond_a_tensor}},
      {"null_pointer", {null_pointer}},
      {"beyond_the_stack", {beyond_the_stack}},
      {"reads_a_block_that_has_ended", {reads_a_block_that_has_ended, 2, kThreads, 2}},
      {"keeps_a_pointer_to_a_block_that_has_ended", {keeps_a_pointer_to_a_block_that_has_ended, 2, kThreads, 2}},
      {"maps_a_block_that_may_not_have_begun", {maps_a_block_that_may_not_have_begun, 2, kThreads, 2}},
      {"more_threads_than_the_bounds", {more_threads_than_the_bounds}},
      {"calls_a_kernel", {calls_a_kernel}},
      {"half_a_warp", {right, 1, 48}},
      {"an_empty_grid", {right, 0}},
      {"half_a_cluster", {right, 3, kThreads, 2}},
      {"a_large_cluster_without_permission", {right, 16, kThreads, 16}},
      {"a_cluster_that_is_no_power_of_two", {right, 3, kThreads, 3}},
      {"much_shared_memory_without_permission", {right, 1, kThreads, 1, 49 * 1024}},
      {"grants", {grants, 5}},
  };
  return all;
}

}  // namespace

// What goes wrong in a launch by its name; empty if nothing does.
extern "C" __attribute__((visibility("default"))) const char* misuse(const char* name) {
  static std::string message;
  message.clear();
  auto* out = static_cast<float*>(cuda_emulation::allocate_guarded(kThreads * sizeof(float)));
  std::fill_n(out, kThreads, 0.0f);
  try {
    const Launch& launch = launches().at(name);
    cudaLaunchAttribute attribute{};
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim = {launch.cluster, 1, 1};
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(launch.grid);
    config.blockDim = dim3(launch.block);
    config.dynamicSmemBytes = launch.shared;
    config.attrs = &attribute;
    config.numAttrs = 1;
    cudaLaunchKernelEx(&config, launch.kernel, out);
    if (std::string(name) == "grants" && out[0] != 5 * 4 * 16) message = "the result is " + std::to_string(out[0]);
  } catch (const std::exception& error) {
    message = error.what();
  }
  cuda_emulation::free_guarded(out);
  return message.c_str();
}
