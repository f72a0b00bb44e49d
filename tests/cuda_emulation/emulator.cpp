// Runs CUDA kernels on one CPU thread: every CUDA thread is a fiber, and fibers change only where threads communicate.
//
// A fiber is made once by makecontext and changed to by _setjmp and _longjmp, which unlike swapcontext make no system
// call. Fibers are kept between launches: one that has run a kernel's body waits for the next.

// glibc's checked longjmp takes a jump to another stack for an attack.
#undef _FORTIFY_SOURCE

#include "emulator.h"

#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#define EXPORTED extern "C" __attribute__((visibility("default")))

// torch's stream; there is one.
extern "C" int32_t aoti_torch_get_current_cuda_stream(int32_t, void** stream) {
  *stream = nullptr;
  return 0;
}

dim3 gridDim, blockDim;

namespace cuda_emulation {

Thread* current = nullptr;

namespace {

constexpr unsigned kWarp = 32;
constexpr size_t kStack = 128 * 1024;
constexpr size_t kArena = size_t{1} << 30;  // addresses for shared memory, of which little is used
constexpr size_t kDefaultShared = 48 * 1024;
constexpr size_t kGuard = size_t{1} << 20;  // before and behind tensors: indices may be far wrong
constexpr size_t kMostShared = 256 * 1024;  // of a block, in whole pages of any size
constexpr unsigned kMostThreads = 2048;  // of the blocks that run at once, unless one cluster has more
constexpr unsigned char kPoison = 0xff;

const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
size_t whole_pages(size_t bytes) { return (bytes + page - 1) / page * page; }

struct Block;
struct Cluster;

struct Fiber : Thread {
  jmp_buf registers;
  ucontext_t start;
  bool started = false;  // else `start` is where it begins
  unsigned number = 0;   // in its block
  Block* block = nullptr;
  // What it waits for, null while it can run.
  const void* awaited = nullptr;
  const char* operation = nullptr;
  Site site{};
  uint64_t cluster_phase = 0;
  bool at_cluster = false;  // has arrived and not waited
};

struct Warp {
  unsigned ended = 0;  // lanes
  std::vector<Meeting*> open;
};

// Shared memory of one variable, or all of a block's dynamic: [guard][slack][data][guard].
struct Region {
  unsigned char* begin = nullptr;  // first page that may be touched
  unsigned char* data = nullptr;
  size_t bytes = 0;
};

// A place where blocks run, one after the other.
struct Place {
  unsigned char* dynamic_base = nullptr;
  size_t dynamic_pages = 0;  // bytes that may be touched, at the end of the most that a block may have
  std::map<const void*, Region> variables;
};

struct Block {
  unsigned number = 0;
  uint3 index{};
  Cluster* cluster = nullptr;
  unsigned rank = 0;
  Place* place = nullptr;
  Region dynamic;
  std::vector<Region*> variables;  // that this block has touched
  size_t variables_bytes = 0;
  std::vector<Fiber*> fibers;
  std::vector<Warp> warps;
  unsigned alive = 0;
  bool has_begun = false;
  // The barrier that threads wait at.
  unsigned arrived = 0, votes = 0, result = 0;
  const char* operation = nullptr;
  Site site{};
  unsigned at_cluster = 0;  // threads that have arrived at the cluster's barrier
  Site cluster_site{};
};

struct Cluster {
  std::vector<Block> blocks;
  unsigned threads = 0, alive = 0, arrived = 0;
  uint64_t phase = 0;
};

enum class Order { forward, reverse, random, newest };

// Fibers that can run. None is in it twice, so it never holds more than there are.
class Queue {
 public:
  void reset(size_t capacity) {
    fibers_.assign(capacity, nullptr);
    head_ = count_ = 0;
  }
  size_t size() const { return count_; }
  void push(Fiber* fiber) { fibers_[place(count_++)] = fiber; }
  void push_first(Fiber* fiber) {
    head_ = place(fibers_.size() - 1);
    fibers_[head_] = fiber;
    ++count_;
  }
  Fiber* first() {
    Fiber* fiber = fibers_[head_];
    head_ = place(1);
    --count_;
    return fiber;
  }
  Fiber* any(size_t i) {
    std::swap(fibers_[place(i)], fibers_[head_]);
    return first();
  }

 private:
  size_t place(size_t i) const {
    const size_t at = head_ + i;
    return at < fibers_.size() ? at : at - fibers_.size();
  }
  std::vector<Fiber*> fibers_;
  size_t head_ = 0, count_ = 0;
};

struct Total {
  uint64_t memsets = 0, memset_bytes = 0, switches = 0;
};

std::mutex running;
jmp_buf scheduler;
std::vector<std::unique_ptr<Fiber>> pool;
std::vector<std::unique_ptr<Place>> places;
unsigned char* arena = nullptr;
size_t arena_used = 0;
std::map<unsigned char*, size_t> guarded;  // data of global memory: bytes
std::vector<std::unique_ptr<Meeting>> meetings;
std::vector<Meeting*> free_meetings;
std::vector<Gpu> gpus{{132, 232448, 0b11111, 90}};
int device = 0;
Order order = Order::forward;
uint64_t random_state = 1;
std::map<std::pair<int, const void*>, int> allowed_shared;
std::map<std::pair<int, const void*>, bool> allowed_clusters;
Total total;

// Of the launch that runs.
const Config* launched = nullptr;
void (*body)(void*) = nullptr;
void* body_data = nullptr;
Kernel* kernel = nullptr;
Queue queue;
Cluster* finished = nullptr;  // the cluster whose last thread has just ended
unsigned since_switch = 0;
char error[2048];
std::string pending;  // an error that was found where none can be thrown

std::vector<Kernel*>& kernels() {
  static std::vector<Kernel*> all;
  return all;
}

bool same(Site a, Site b) { return a.line == b.line && (a.file == b.file || strcmp(a.file, b.file) == 0); }

Fiber* me() { return static_cast<Fiber*>(current); }

uint64_t random_number() {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return random_state;
}

[[noreturn]] void to_scheduler() { _longjmp(scheduler, 1); }

Fiber* next_fiber() {
  if (queue.size() == 0) return nullptr;
  return order == Order::random ? queue.any(random_number() % queue.size()) : queue.first();
}

[[noreturn]] void go_on(Fiber* fiber) {
  ++total.switches;
  since_switch = 0;
  current = fiber;
  if (fiber->started) _longjmp(fiber->registers, 1);
  fiber->started = true;
  setcontext(&fiber->start);
  abort();
}

// Leaves this fiber until somebody goes on with it. Without a next one the scheduler looks why.
__attribute__((noinline)) void change_to(Fiber* next) {
  if (_setjmp(me()->registers) != 0) return;
  if (next == nullptr) to_scheduler();
  go_on(next);
}

void wait_for(const void* awaited, const char* operation, Site site) {
  Fiber* fiber = me();
  fiber->awaited = awaited;
  fiber->operation = operation;
  fiber->site = site;
  change_to(next_fiber());
}

void wake_if_waiting(Fiber* fiber, const void* awaited) {
  if (fiber->awaited != awaited) return;
  fiber->awaited = nullptr;
  if (order == Order::newest) {
    queue.push_first(fiber);
  } else {
    queue.push(fiber);
  }
}

// Calls f(i) for i < count, in the order in which threads are let run.
template <typename F>
void each(size_t count, F f) {
  for (size_t i = 0; i < count; ++i) f(order == Order::reverse ? count - 1 - i : i);
}

// The same for those who are woken: of the newest, the last one to be put in front is the first to run.
template <typename F>
void each_woken(size_t count, F f) {
  for (size_t i = 0; i < count; ++i) f(order == Order::forward || order == Order::random ? i : count - 1 - i);
}

void run_body() {
  for (;;) {
    me()->block->has_begun = true;
    body(body_data);
    Fiber* fiber = me();
    Block& block = *fiber->block;
    Warp& warp = block.warps[fiber->number / kWarp];
    warp.ended |= 1u << fiber->lane;
    for (const Meeting* meeting : warp.open) {
      if (meeting->mask >> fiber->lane & 1) {
        fail("a lane ended while others of its warp wait for it in %s at %s:%d", meeting->operation,
             meeting->site.file, meeting->site.line);
      }
    }
    if (block.arrived != 0) {
      fail("a thread ended while others of its block wait for it in %s at %s:%d", block.operation, block.site.file,
           block.site.line);
    }
    if (fiber->at_cluster) fail("a thread ended between arriving at its cluster's barrier and waiting for it");
    if (block.cluster->arrived != 0) fail("a thread ended while others of its cluster wait for it at a barrier");
    --block.alive;
    if (block.alive == 0 && block.cluster->blocks.size() > 1) {
      // Whoever still reads this block's shared memory is stopped.
      mprotect(block.dynamic.begin, block.place->dynamic_pages, PROT_NONE);
    }
    if (--block.cluster->alive == 0) {
      finished = block.cluster;
      change_to(nullptr);
    } else {
      change_to(next_fiber());
    }
  }
}

// Shared memory.

unsigned char* take_addresses(size_t bytes) {
  if (arena == nullptr) {
    void* got = mmap(nullptr, kArena, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (got == MAP_FAILED) fail("no addresses for shared memory");
    arena = static_cast<unsigned char*>(got);
  }
  bytes += page;  // the guard behind it; that before it belongs to its predecessor
  if (arena_used == 0) arena_used = page;
  if (arena_used + bytes > kArena) fail("out of addresses for shared memory");
  unsigned char* begin = arena + arena_used;
  arena_used += bytes;
  return begin;
}

void allow(unsigned char* begin, size_t bytes) {
  if (bytes != 0 && mprotect(begin, bytes, PROT_READ | PROT_WRITE) != 0) fail("mprotect failed");
}

void poison(const Region& region) {
  const size_t pages = whole_pages(region.bytes + static_cast<size_t>(region.data - region.begin));
  memset(region.begin, kPoison, pages);
}

// What lies in the pages around the data must still be what was put there.
bool is_intact(const Region& region) {
  const unsigned char* end =
      region.begin + whole_pages(region.bytes + static_cast<size_t>(region.data - region.begin));
  const auto untouched = [](unsigned char x) { return x == kPoison; };
  return std::all_of<const unsigned char*>(region.begin, region.data, untouched) &&
         std::all_of<const unsigned char*>(region.data + region.bytes, end, untouched);
}

Region dynamic_region(Place& place, size_t bytes) {
  if (place.dynamic_base == nullptr) place.dynamic_base = take_addresses(kMostShared);
  unsigned char* end = place.dynamic_base + kMostShared;
  const size_t pages = whole_pages(bytes);
  if (pages != place.dynamic_pages) {
    mprotect(place.dynamic_base, kMostShared, PROT_NONE);
    allow(end - pages, pages);
    place.dynamic_pages = pages;
  }
  const Region region{end - pages, end - (bytes + 15) / 16 * 16, bytes};
  poison(region);
  return region;
}

Region& variable_region(Block& block, const void* tag, size_t bytes) {
  Region& region = block.place->variables[tag];
  if (region.begin == nullptr) {
    const size_t pages = whole_pages(bytes);
    region.begin = take_addresses(pages);
    allow(region.begin, pages);
    region.data = region.begin + (pages - bytes);  // aligned no better than it must be
    region.bytes = bytes;
  }
  if (std::find(block.variables.begin(), block.variables.end(), &region) == block.variables.end()) {
    poison(region);
    block.variables.push_back(&region);
    block.variables_bytes += bytes;
    if (block.variables_bytes > kDefaultShared) fail("more than 48 KB of shared variables");
    if (block.variables_bytes + block.dynamic.bytes > static_cast<size_t>(gpus[device].shared)) {
      fail("shared variables and dynamic shared memory are more than the GPU has");
    }
  }
  return region;
}

// The scheduler.

void prepare(Fiber& fiber, size_t number) {
  static unsigned char* stacks = nullptr;
  static size_t left = 0;
  constexpr size_t kAtOnce = 256;
  if (fiber.start.uc_stack.ss_sp == nullptr) {
    if (left == 0) {
      void* got = mmap(nullptr, kStack * kAtOnce, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      if (got == MAP_FAILED) throw std::runtime_error("cuda emulation: no memory for stacks");
      stacks = static_cast<unsigned char*>(got);
      left = kAtOnce;
    }
    mprotect(stacks, page, PROT_NONE);
    getcontext(&fiber.start);
    fiber.start.uc_stack.ss_sp = stacks + page;
    // Stacks that all begin at one place of a page would share few lines of the cache.
    fiber.start.uc_stack.ss_size = kStack - page - number * 576 % page;
    fiber.start.uc_link = nullptr;
    stacks += kStack;
    --left;
  }
  makecontext(&fiber.start, run_body, 0);
  fiber.started = false;
}

uint3 position(unsigned number, dim3 size) {
  return {number % size.x, number / size.x % size.y, number / size.x / size.y};
}

void begin_cluster(Cluster& cluster, unsigned first_block, unsigned first_place) {
  const unsigned threads = blockDim.x * blockDim.y * blockDim.z;
  cluster.threads = cluster.alive = threads * static_cast<unsigned>(cluster.blocks.size());
  cluster.arrived = 0;
  for (unsigned rank = 0; rank < cluster.blocks.size(); ++rank) {
    Block& block = cluster.blocks[rank];
    block = Block();
    block.number = first_block + rank;
    block.index = position(block.number, gridDim);
    block.cluster = &cluster;
    block.rank = rank;
    while (places.size() <= first_place + rank) places.push_back(std::make_unique<Place>());
    block.place = places[first_place + rank].get();
    block.dynamic = dynamic_region(*block.place, launched->shared);
    block.alive = threads;
    block.warps.resize(threads / kWarp);
    block.fibers.resize(threads);
    const size_t first_fiber = size_t{first_place + rank} * threads;
    while (pool.size() < first_fiber + threads) pool.push_back(std::make_unique<Fiber>());
    for (unsigned t = 0; t < threads; ++t) {
      Fiber& fiber = *pool[first_fiber + t];
      if (fiber.start.uc_stack.ss_sp == nullptr) prepare(fiber, first_fiber + t);
      fiber.index = position(t, blockDim);
      fiber.lane = t % kWarp;
      fiber.number = t;
      fiber.block_index = block.index;
      fiber.dynamic_shared = block.dynamic.data;
      fiber.block = &block;
      fiber.awaited = nullptr;
      fiber.at_cluster = false;
      block.fibers[t] = &fiber;
    }
  }
  each(cluster.blocks.size(), [&](size_t rank) {
    each(threads, [&](size_t t) { queue.push(cluster.blocks[rank].fibers[t]); });
  });
}

void check_shared(const Cluster& cluster) {
  for (const Block& block : cluster.blocks) {
    if (cluster.blocks.size() > 1) allow(block.dynamic.begin, block.place->dynamic_pages);
    bool intact = is_intact(block.dynamic);
    for (const Region* region : block.variables) intact = intact && is_intact(*region);
    if (!intact) fail("block %u wrote outside of its shared memory", block.number);
  }
}

void describe_deadlock(const std::vector<Cluster>& clusters) {
  std::string text = "deadlock";
  int told = 0;
  for (const Cluster& cluster : clusters) {
    for (const Block& block : cluster.blocks) {
      std::map<std::pair<std::string, int>, int> waiting;
      for (const Fiber* fiber : block.fibers) {
        if (fiber->awaited != nullptr) {
          ++waiting[{std::string(fiber->operation) + " at " + fiber->site.file, fiber->site.line}];
        }
      }
      for (const auto& [where, threads] : waiting) {
        if (++told > 8) continue;
        text += "; block " + std::to_string(block.number) + ": " + std::to_string(threads) + " threads wait in " +
                where.first + ":" + std::to_string(where.second);
      }
    }
  }
  fail("%s", text.c_str());
}

// Faults of a kernel become errors of its launch.
void on_fault(int signal_number, siginfo_t* info, void*) {
  if (current == nullptr) {  // not a kernel's
    signal(signal_number, SIG_DFL);
    return;
  }
  const auto* address = static_cast<unsigned char*>(info->si_addr);
  const char* what = "memory that is nobody's";
  if (is_shared(address)) {
    what = "outside of its shared memory, or that of a block that has ended";
  } else {
    const auto* stack = static_cast<unsigned char*>(me()->start.uc_stack.ss_sp);
    if (address < stack && address >= stack - page) what = "beyond its stack";
    for (const auto& [data, bytes] : guarded) {
      if (address >= data - kGuard - page && address < data + bytes + page + kGuard) what = "outside of a tensor";
    }
  }
  fail("a thread reads or writes %s", what);
}

// Takes over faults, on a stack of its own, until the end of the scope.
class Faults {
 public:
  Faults() {
    static std::vector<unsigned char> stack(64 * 1024);
    stack_t own{};
    own.ss_sp = stack.data();
    own.ss_size = stack.size();
    sigaltstack(&own, &stack_);
    struct sigaction action {};
    action.sa_sigaction = on_fault;
    // The handler does not return, so the signal must not stay blocked.
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    sigaction(SIGSEGV, &action, &segv_);
    sigaction(SIGBUS, &action, &bus_);
  }
  ~Faults() {
    sigaction(SIGSEGV, &segv_, nullptr);
    sigaction(SIGBUS, &bus_, nullptr);
    sigaltstack(&stack_, nullptr);
  }

 private:
  stack_t stack_{};
  struct sigaction segv_ {}, bus_ {};
};

void check_launch(const Config& config, const void* function) {
  const Gpu& here = gpus[device];
  const unsigned threads = config.block.x * config.block.y * config.block.z;
  if (threads == 0 || threads > 1024 || threads % kWarp != 0) fail("blocks of %u threads are not emulated", threads);
  if (uint64_t{config.grid.x} * config.grid.y * config.grid.z == 0) fail("the grid is empty");
  if (config.grid.y > 65535 || config.grid.z > 65535) fail("the grid is too large");
  if (config.cluster > 1) {
    if (config.cluster & (config.cluster - 1) || !(here.clusters & config.cluster)) {
      fail("this GPU runs no clusters of %u blocks", config.cluster);
    }
    if (config.cluster > 8 && !allowed_clusters[{device, function}]) {
      fail("clusters of more than 8 blocks need cudaFuncAttributeNonPortableClusterSizeAllowed");
    }
    if (config.grid.x % config.cluster != 0) fail("the grid is no multiple of the cluster");
  }
  if (config.shared > kDefaultShared) {
    const auto found = allowed_shared.find({device, function});
    if (function == nullptr || found == allowed_shared.end() || static_cast<size_t>(found->second) < config.shared) {
      fail("%zu bytes of dynamic shared memory need cudaFuncAttributeMaxDynamicSharedMemorySize", config.shared);
    }
  }
}

void run_all(const Config& config) {
  const unsigned blocks = config.grid.x * config.grid.y * config.grid.z;
  const unsigned groups = blocks / config.cluster;
  const unsigned threads = blockDim.x * blockDim.y * blockDim.z * config.cluster;
  const unsigned at_once = std::min(groups, std::max(1u, kMostThreads / threads));
  std::vector<unsigned> numbers(groups);
  each(groups, [&, i = 0u](size_t group) mutable { numbers[i++] = static_cast<unsigned>(group); });
  if (order == Order::random) {
    for (unsigned i = groups; i > 1; --i) std::swap(numbers[i - 1], numbers[random_number() % i]);
  }
  queue.reset(size_t{at_once} * threads);
  std::vector<Cluster> clusters(at_once);
  unsigned begun = 0, ended = 0;
  const auto begin = [&](Cluster& cluster) {
    const unsigned place = static_cast<unsigned>(&cluster - clusters.data()) * config.cluster;
    begin_cluster(cluster, numbers[begun++] * config.cluster, place);
  };
  for (Cluster& cluster : clusters) {
    cluster.blocks.resize(config.cluster);
    begin(cluster);
  }
  while (ended < groups) {
    finished = nullptr;
    Fiber* next = next_fiber();
    if (next == nullptr) describe_deadlock(clusters);
    if (_setjmp(scheduler) == 0) go_on(next);
    current = nullptr;
    if (error[0] != '\0') throw std::runtime_error(error);
    if (finished == nullptr) describe_deadlock(clusters);
    check_shared(*finished);
    ++ended;
    if (begun < groups) begin(*finished);
  }
}

}  // namespace

Kernel::Kernel(const char* name_, const char* signature_) : name(name_), signature(signature_) {
  kernels().push_back(this);
}

void fail(const char* format, ...) {
  char text[1024];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof(text), format, arguments);
  va_end(arguments);
  char where[128] = "";
  if (current != nullptr) {
    snprintf(where, sizeof(where), " (block %u, thread %u)", me()->block->number, me()->number);
  }
  const char* name = kernel != nullptr ? kernel->name : "a launch";
  snprintf(error, sizeof(error), "cuda emulation: %s: %s%s", name, text, where);
  if (current != nullptr) to_scheduler();
  throw std::runtime_error(error);
}

void enter_kernel(Kernel& entered, unsigned most_threads) {
  if (kernel == nullptr) {
    kernel = &entered;
    const uint64_t blocks = uint64_t{gridDim.x} * gridDim.y * gridDim.z;
    const uint64_t threads = uint64_t{blockDim.x} * blockDim.y * blockDim.z;
    if (threads > most_threads) fail("%u threads per block, __launch_bounds__ allows %u", unsigned(threads), most_threads);
    ++kernel->launches;
    kernel->blocks += blocks;
    kernel->threads += blocks * threads;
    kernel->shared = std::max(kernel->shared, launched->shared);
    kernel->clusters |= launched->cluster;
  } else if (kernel != &entered) {
    fail("calls the kernel %s", entered.name);
  }
}

int sync_block(const char* operation, Site site, Vote vote, int value) {
  Block& block = *me()->block;
  if (block.alive != block.fibers.size()) {
    fail("%s at %s:%d: threads of the block have ended before it", operation, site.file, site.line);
  }
  if (block.arrived == 0) {
    block.operation = operation;
    block.site = site;
    block.votes = 0;
  } else if (!same(block.site, site) || strcmp(block.operation, operation) != 0) {
    fail("threads of a block are at different barriers: %s at %s:%d and %s at %s:%d", block.operation, block.site.file,
         block.site.line, operation, site.file, site.line);
  }
  block.votes += value != 0;
  if (++block.arrived < block.fibers.size()) {
    wait_for(&block, operation, site);
  } else {
    const unsigned votes = block.votes, threads = static_cast<unsigned>(block.fibers.size());
    block.result = vote == Vote::any ? votes != 0 : vote == Vote::all ? votes == threads : votes;
    block.arrived = 0;
    each_woken(threads, [&](size_t t) { wake_if_waiting(block.fibers[t], &block); });
  }
  return static_cast<int>(block.result);
}

Meeting& meet(unsigned mask, const char* operation, Site site, const void* value, size_t bytes) {
  Fiber* fiber = me();
  Block& block = *fiber->block;
  Warp& warp = block.warps[fiber->number / kWarp];
  const unsigned bit = 1u << fiber->lane;
  const auto refuse = [&](const char* why) { fail("%s at %s:%d: %s", operation, site.file, site.line, why); };
  if (!(mask & bit)) refuse("the lane is not in its own mask");
  if (mask & warp.ended) refuse("a lane of the mask has ended");
  Meeting* meeting = nullptr;
  for (Meeting* open : warp.open) {
    if (!(open->mask & mask)) continue;
    if (open->mask != mask) refuse("lanes that meet have different masks");
    if (!same(open->site, site) || strcmp(open->operation, operation) != 0) {
      fail("lanes of a warp are at different operations: %s at %s:%d and %s at %s:%d", open->operation,
           open->site.file, open->site.line, operation, site.file, site.line);
    }
    meeting = open;
  }
  if (meeting == nullptr) {
    if (free_meetings.empty()) {
      meetings.push_back(std::make_unique<Meeting>());
      free_meetings.push_back(meetings.back().get());
    }
    meeting = free_meetings.back();
    free_meetings.pop_back();
    meeting->mask = meeting->inside = mask;
    meeting->arrived = 0;
    meeting->operation = operation;
    meeting->site = site;
    warp.open.push_back(meeting);
  }
  if (bytes != 0) memcpy(meeting->values[fiber->lane], value, bytes);
  meeting->arrived |= bit;
  if (meeting->arrived != mask) {
    wait_for(meeting, operation, site);
  } else {
    warp.open.erase(std::find(warp.open.begin(), warp.open.end(), meeting));
    const unsigned first = fiber->number - fiber->lane;
    each_woken(kWarp, [&](size_t lane) { wake_if_waiting(block.fibers[first + lane], meeting); });
  }
  return *meeting;
}

void leave(Meeting& meeting) {
  meeting.inside &= ~(1u << current->lane);
  if (meeting.inside == 0) free_meetings.push_back(&meeting);
}

void preempt() {
  // Now and then in any order, so that a thread that looks until another has written does not look for ever.
  const bool now = order == Order::random ? random_number() % 4 == 0 : ++since_switch % 256 == 0;
  if (current == nullptr || !now || queue.size() == 0) return;
  Fiber* next = next_fiber();
  queue.push(me());
  change_to(next);
}

bool is_shared(const void* address) {
  const auto* at = static_cast<const unsigned char*>(address);
  return arena != nullptr && at >= arena && at < arena + kArena;
}

void count_atomic(const void* address) {
  if (kernel != nullptr && !is_shared(address)) ++kernel->atomics;
}

unsigned cluster_blocks() { return static_cast<unsigned>(me()->block->cluster->blocks.size()); }
unsigned cluster_rank() { return me()->block->rank; }

void arrive_at_cluster(Site site) {
  Fiber* fiber = me();
  Block& block = *fiber->block;
  Cluster& cluster = *block.cluster;
  if (fiber->at_cluster) fail("arrives twice at its cluster's barrier, at %s:%d", site.file, site.line);
  if (cluster.alive != cluster.threads) fail("cluster barrier at %s:%d: threads have ended", site.file, site.line);
  if (block.at_cluster == 0) {
    block.cluster_site = site;
  } else if (!same(block.cluster_site, site)) {
    fail("threads of a block are at different cluster barriers: %s:%d and %s:%d", block.cluster_site.file,
         block.cluster_site.line, site.file, site.line);
  }
  block.at_cluster = (block.at_cluster + 1) % static_cast<unsigned>(block.fibers.size());
  fiber->at_cluster = true;
  fiber->cluster_phase = cluster.phase;
  if (++cluster.arrived < cluster.threads) return;
  cluster.arrived = 0;
  ++cluster.phase;
  each_woken(cluster.blocks.size(), [&](size_t rank) {
    Block& other = cluster.blocks[rank];
    each_woken(other.fibers.size(), [&](size_t t) { wake_if_waiting(other.fibers[t], &cluster); });
  });
}

void wait_for_cluster(Site site) {
  Fiber* fiber = me();
  if (!fiber->at_cluster) fail("waits for its cluster's barrier without arriving, at %s:%d", site.file, site.line);
  Cluster& cluster = *fiber->block->cluster;
  if (fiber->cluster_phase == cluster.phase) wait_for(&cluster, "the cluster's barrier", site);
  me()->at_cluster = false;
}

void* map_shared(const void* address, unsigned rank) {
  Block& block = *me()->block;
  if (rank >= block.cluster->blocks.size()) fail("map_shared_rank: the cluster has no block %u", rank);
  Block& other = block.cluster->blocks[rank];
  if (!other.has_begun) fail("maps shared memory of block %u, which may not have begun", other.number);
  if (other.alive == 0) fail("maps shared memory of block %u, which has ended", other.number);
  const auto* at = static_cast<const unsigned char*>(address);
  if (at >= block.dynamic.data && at <= block.dynamic.data + block.dynamic.bytes) {
    return other.dynamic.data + (at - block.dynamic.data);
  }
  for (auto& [tag, region] : block.place->variables) {
    if (at < region.data || at >= region.data + region.bytes) continue;
    return variable_region(other, tag, region.bytes).data + (at - region.data);
  }
  fail("map_shared_rank of what is not shared memory of the block");
}

void* static_shared(const void* tag, size_t bytes) {
  return variable_region(*me()->block, tag, bytes).data;
}

void run(const Config& config, const void* function, void (*body_)(void*), void* data) {
  const std::lock_guard<std::mutex> lock(running);
  error[0] = '\0';
  kernel = nullptr;
  if (!pending.empty()) {
    const std::string text = std::exchange(pending, "");
    throw std::runtime_error(text);
  }
  check_launch(config, function);
  launched = &config;
  gridDim = config.grid;
  blockDim = config.block;
  body = body_;
  body_data = data;
  const Faults faults;
  try {
    run_all(config);
    if (kernel == nullptr) fail("what was launched is no __global__ function");
  } catch (...) {
    // Fibers that stopped in the middle begin anew; what they held is lost.
    current = nullptr;
    for (size_t i = 0; i < pool.size(); ++i) prepare(*pool[i], i);
    free_meetings.clear();
    for (const auto& meeting : meetings) free_meetings.push_back(meeting.get());
    for (const auto& place : places) {
      if (place->dynamic_base != nullptr) mprotect(place->dynamic_base, kMostShared, PROT_NONE);
      place->dynamic_pages = 0;
    }
    kernel = nullptr;
    throw;
  }
  kernel = nullptr;
}

const Gpu& gpu(int number) { return gpus.at(static_cast<size_t>(number)); }
int current_device() { return device; }
void allow_shared(const void* function, int bytes) { allowed_shared[{device, function}] = bytes; }
void allow_large_clusters(const void* function) { allowed_clusters[{device, function}] = true; }
void count_memset(size_t bytes) {
  ++total.memsets;
  total.memset_bytes += bytes;
}

void* allocate_guarded(size_t bytes) {
  const size_t pages = whole_pages(bytes);
  void* got = mmap(nullptr, pages + 2 * kGuard, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (got == MAP_FAILED) throw std::bad_alloc();
  unsigned char* begin = static_cast<unsigned char*>(got) + kGuard;
  allow(begin, pages);
  memset(begin, kPoison, pages);
  unsigned char* data = begin + pages - (bytes + 15) / 16 * 16;
  const std::lock_guard<std::mutex> lock(running);
  guarded[data] = bytes;
  return data;
}

void free_guarded(void* memory) {
  const std::lock_guard<std::mutex> lock(running);
  const auto entry = guarded.find(static_cast<unsigned char*>(memory));
  const auto [data, bytes] = *entry;
  guarded.erase(entry);
  const size_t pages = whole_pages(bytes);
  unsigned char* begin = data + (bytes + 15) / 16 * 16 - pages;
  if (!is_intact({begin, data, bytes})) {
    // Torch calls this, and it cannot tell Python; the next launch does, or whoever asks for it at the end.
    pending = "cuda emulation: an earlier kernel wrote beside a tensor of " + std::to_string(bytes) + " bytes";
  }
  munmap(begin - kGuard, pages + 2 * kGuard);
}

}  // namespace cuda_emulation

// For Python.

using namespace cuda_emulation;

// A GPU to choose from; returns its number.
EXPORTED int cuda_emulation_add_gpu(int processors, int shared, unsigned clusters, int architecture) {
  gpus.push_back({processors, shared, clusters, architecture});
  return static_cast<int>(gpus.size()) - 1;
}

EXPORTED void cuda_emulation_use(int gpu, int order_, uint64_t seed) {
  device = gpu;
  order = static_cast<Order>(order_);
  random_state = seed * 2654435769u + 1;
}

EXPORTED void cuda_emulation_reset() {
  total = {};
  for (Kernel* one : kernels()) {
    one->launches = one->blocks = one->threads = one->atomics = one->shared = 0;
    one->clusters = 0;
  }
}

// The counts as lines of words between tabs; the text lives until the next call.
EXPORTED const char* cuda_emulation_counts() {
  static std::string text;
  text = std::to_string(total.memsets) + "\t" + std::to_string(total.memset_bytes) + "\t" +
         std::to_string(total.switches) + "\n";
  for (const Kernel* one : kernels()) {
    text += std::string(one->name) + "\t" + one->signature;
    for (uint64_t count : {one->launches, one->blocks, one->threads, one->atomics, uint64_t{one->shared},
                           uint64_t{one->clusters}}) {
      text += "\t" + std::to_string(count);
    }
    text += "\n";
  }
  return text.c_str();
}

// An error that no launch has told yet; empty if there is none.
EXPORTED const char* cuda_emulation_pending() {
  static std::string text;
  text = std::exchange(pending, "");
  return text.c_str();
}
