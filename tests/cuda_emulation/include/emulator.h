// What the translated kernels and the headers beside this one need of the emulator: threads, barriers, warp operations,
// shared memory and launches. See ../__init__.py for what the emulation shows and what it does not.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <tuple>
#include <type_traits>
#include <utility>

struct uint3 {
  unsigned x, y, z;
};

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
  constexpr dim3(uint3 other) : x(other.x), y(other.y), z(other.z) {}
};

using cudaStream_t = void*;

extern dim3 gridDim, blockDim;  // of the launch that runs

namespace cuda_emulation {

// Where an operation stands in the source.
struct Site {
  const char* file;
  int line;
};

struct Thread {
  uint3 index;
  unsigned lane;
  uint3 block_index;
  unsigned char* dynamic_shared;  // of the block
};

// The CUDA thread that runs; its fiber is the only one that does.
extern Thread* current;

// A kernel's name, and what its launches did.
struct Kernel {
  const char* name;       // file:function
  const char* signature;  // of the instantiation
  uint64_t launches = 0, blocks = 0, threads = 0, atomics = 0;
  size_t shared = 0;         // most dynamic bytes of a block
  unsigned clusters = 0;     // bit k: launched in clusters of 2^k blocks
  Kernel(const char* name, const char* signature);
};

// Ends the launch; the host gets an exception.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

void enter_kernel(Kernel& kernel, unsigned most_threads);

enum class Vote { none, any, all, count };
int sync_block(const char* operation, Site site, Vote vote = Vote::none, int value = 0);

// A meeting of the lanes of a mask: each brings a value and may read the others' until it leaves.
struct Meeting {
  unsigned mask = 0, arrived = 0, inside = 0;
  const char* operation = nullptr;
  Site site{};
  alignas(16) unsigned char values[32][16];
};
Meeting& meet(unsigned mask, const char* operation, Site site, const void* value, size_t bytes);
void leave(Meeting& meeting);

// Other threads may run here; for operations that threads communicate by.
void preempt();
bool is_shared(const void* address);
void count_atomic(const void* address);

unsigned cluster_blocks();
unsigned cluster_rank();
void arrive_at_cluster(Site site);
void wait_for_cluster(Site site);
void* map_shared(const void* address, unsigned rank);

void* static_shared(const void* tag, size_t bytes);

// One object per block and type: the translator gives every declaration a type of its own.
template <typename Variables>
Variables& shared_variables() {
  static const char tag = 0;
  return *static_cast<Variables*>(static_shared(&tag, sizeof(Variables)));
}

template <typename T>
T* dynamic_shared() {
  return reinterpret_cast<T*>(current->dynamic_shared);
}

// Warp operations.

template <typename T>
T shuffle(unsigned mask, T x, unsigned source, const char* operation, Site site) {
  static_assert(sizeof(T) <= 16 && std::is_trivially_copyable_v<T>);
  Meeting& meeting = meet(mask, operation, site, &x, sizeof(T));
  if (!(mask >> source & 1)) fail("%s at %s:%d: lane %u is not in the mask", operation, site.file, site.line, source);
  memcpy(&x, meeting.values[source], sizeof(T));
  leave(meeting);
  return x;
}

template <typename T, typename Combine>
T reduce_lanes(unsigned mask, T x, Combine combine, const char* operation, Site site) {
  Meeting& meeting = meet(mask, operation, site, &x, sizeof(T));
  bool first = true;
  for (int lane = 0; lane < 32; ++lane) {
    if (!(mask >> lane & 1)) continue;
    T other;
    memcpy(&other, meeting.values[lane], sizeof(T));
    x = first ? other : combine(x, other);
    first = false;
  }
  leave(meeting);
  return x;
}

// The lanes whose value is this one's.
template <typename T>
unsigned match(unsigned mask, T x, const char* operation, Site site) {
  Meeting& meeting = meet(mask, operation, site, &x, sizeof(T));
  unsigned alike = 0;
  for (int lane = 0; lane < 32; ++lane) {
    if (mask >> lane & 1 && memcmp(meeting.values[lane], &x, sizeof(T)) == 0) alike |= 1u << lane;
  }
  leave(meeting);
  return alike;
}

inline unsigned ballot(unsigned mask, bool x, const char* operation, Site site) {
  const unsigned bit = x ? 1u << current->lane : 0;
  return reduce_lanes(mask, bit, [](unsigned a, unsigned b) { return a | b; }, operation, site);
}

// The lane that a lane reads from in segments of `width` lanes; itself where the other one is outside.
inline unsigned lane_below(unsigned step, unsigned width) {
  const unsigned lane = current->lane;
  return lane % width >= step ? lane - step : lane;
}
inline unsigned lane_above(unsigned step, unsigned width) {
  const unsigned lane = current->lane;
  return lane % width + step < width ? lane + step : lane;
}
inline unsigned lane_across(unsigned bits, unsigned width) {
  const unsigned lane = current->lane, other = lane ^ bits;
  return other / width <= lane / width ? other : lane;
}
inline unsigned lane_of(unsigned source, unsigned width) { return current->lane / width * width + source % width; }

// Launches.

struct Config {
  dim3 grid, block;
  size_t shared = 0;
  cudaStream_t stream = nullptr;
  unsigned cluster = 1;
};
inline Config config(dim3 grid, dim3 block, size_t shared = 0, cudaStream_t stream = nullptr) {
  return {grid, block, shared, stream};
}

// `kernel` is the function, null if it has no one address; `body(data)` calls it.
void run(const Config& config, const void* kernel, void (*body)(void*), void* data);

template <typename Call>
void run(const Config& config, const void* kernel, Call& call) {
  run(config, kernel, [](void* data) { (*static_cast<Call*>(data))(); }, &call);
}

template <typename... Parameters, typename... Arguments>
void launch(const Config& config, void (*kernel)(Parameters...), Arguments&&... arguments) {
  const std::tuple<Parameters...> values(std::forward<Arguments>(arguments)...);
  auto call = [&] { std::apply(kernel, values); };
  run(config, reinterpret_cast<const void*>(kernel), call);
}

// A kernel whose template arguments follow from its arguments.
template <typename Deduced, typename... Arguments>
  requires(!std::is_pointer_v<Deduced>)
void launch(const Config& config, Deduced kernel, Arguments... arguments) {
  auto call = [&] { kernel(arguments...); };
  run(config, nullptr, call);
}

// The host's side of the runtime.
struct Gpu {
  int processors;
  int shared;         // bytes a block may have
  unsigned clusters;  // bit k: runs clusters of 2^k blocks
  int architecture;   // of the code: 80, 90
};
const Gpu& gpu(int device);
int current_device();
void allow_shared(const void* kernel, int bytes);
void allow_large_clusters(const void* kernel);
void count_memset(size_t bytes);

// Memory full of 0xFF, with addresses on both sides that may not be touched: right behind it, but for up to 15 bytes.
void* allocate_guarded(size_t bytes);
void free_guarded(void* data);

}  // namespace cuda_emulation

#define CUDA_EMULATION_SITE (cuda_emulation::Site{__FILE__, __LINE__})
// The first statement of every kernel.
#define CUDA_EMULATION_KERNEL(NAME_, MOST_THREADS_)                                        \
  static cuda_emulation::Kernel cuda_emulation_kernel(NAME_, __PRETTY_FUNCTION__);         \
  cuda_emulation::enter_kernel(cuda_emulation_kernel, static_cast<unsigned>(MOST_THREADS_))
