// Stands for CUDA's header of this name: blocks and clusters.
#pragma once

#include "emulator.h"

namespace cooperative_groups {

struct cluster_group {
  struct arrival_token {};

  static unsigned num_blocks() { return cuda_emulation::cluster_blocks(); }
  static unsigned block_rank() { return cuda_emulation::cluster_rank(); }
  static void sync(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    cuda_emulation::arrive_at_cluster({file, line});
    cuda_emulation::wait_for_cluster({file, line});
  }
  static arrival_token barrier_arrive(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    cuda_emulation::arrive_at_cluster({file, line});
    return {};
  }
  static void barrier_wait(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    cuda_emulation::wait_for_cluster({file, line});
  }
  static void barrier_wait(arrival_token&&, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    cuda_emulation::wait_for_cluster({file, line});
  }
  template <typename T>
  static T* map_shared_rank(T* address, unsigned rank) {
    return static_cast<T*>(cuda_emulation::map_shared(address, rank));
  }
};
inline cluster_group this_cluster() { return {}; }

struct thread_block {
  static void sync(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    cuda_emulation::sync_block("thread_block::sync", {file, line});
  }
};
inline thread_block this_thread_block() { return {}; }

}  // namespace cooperative_groups
