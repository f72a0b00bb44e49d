// backproject on CUDA: points of a depth map, their gradient, and the compacted cloud.
//
// X = (u - cx) / fx * z, Y = (v - cy) / fy * z, Z = z. With the incoming gradient g and a = (u - cx) / fx,
// b = (v - cy) / fy:
//   dL/dz = a g_x + b g_y + g_z
//   dL/dfx = -1/fx sum a z g_x,  dL/dcx = -1/fx sum z g_x,  and the same for y,
// with sums over the valid pixels of an image.
//
// The points are interleaved, 12 bytes each. A thread works on pixels whose points are three 16-byte chunks, but if it
// moved them itself, a warp's accesses would be 48 bytes apart. So each warp passes its points through shared memory
// and moves consecutive chunks. Both shared accesses are free of bank conflicts: eight lanes, 12 words apart, touch all
// 32 banks once.
//
// Blocks belong to one image each, because the camera and its gradient do. An image may begin anywhere, chunks may not:
// its first chunk begins up to `kPixels - 1` pixels before it, and what lies outside of the image is left alone.
#include "cuda.cuh"

namespace distilldepth {
namespace {

constexpr int kThreads = 256;
constexpr int kChunkBytes = 16;
constexpr int kBlocksPerProcessor = 8;  // of the backward pass, whose blocks loop over tiles
constexpr int kSumThreads = 128;
constexpr int kCloudRounds = 8;
constexpr int64_t kCloudTile = int64_t{kThreads} * kCloudRounds;
constexpr int kScanThreads = 1024;

template <typename Acc>
constexpr Acc kNan = std::numeric_limits<Acc>::quiet_NaN();

template <typename Map>
struct Problem {
  const Map* depth;              // (B, H, W)
  const acc_t<Map>* intrinsics;  // (B, 3, 3)
  const bool* valid;             // (B, H, W) or null
  int64_t images;                // B
  int pixels;                    // H * W
  int width;                     // W
  int tiles_per_image;
  int blocks_per_image;
  bool vectors;  // depth and valid may be read in vectors
};

template <typename Acc>
struct Camera {
  Acc fx, fy, cx, cy;

  __device__ __forceinline__ explicit Camera(const Acc* matrix /* (3, 3) */)
      : fx(matrix[0]), fy(matrix[4]), cx(matrix[2]), cy(matrix[5]) {}
};

// The pixels of one thread, consecutive in memory. Numbers count from the image's first pixel.
template <typename Map>
struct Strip {
  using Acc = acc_t<Map>;
  static constexpr int kPixels = kChunkBytes / sizeof(Acc);
  static constexpr int kWarpPixels = kPixels * kWarp;
  static constexpr int kTile = kPixels * kThreads;

  int64_t image_start;  // the image's first pixel in the batch
  int warp_first;       // first pixel of the warp, may be negative
  int first;            // first pixel of the thread, may be negative
  Acc z[kPixels];
  bool kept[kPixels];  // inside the image and valid

  __device__ __forceinline__ Strip(const Problem<Map>& problem, int64_t image, int tile) {
    image_start = image * problem.pixels;
    const int lane = threadIdx.x % kWarp;
    const int before_image = static_cast<int>(image_start % kPixels);
    warp_first = tile * kTile + static_cast<int>(threadIdx.x - lane) * kPixels - before_image;
    first = warp_first + lane * kPixels;
  }

  __device__ __forceinline__ bool complete(const Problem<Map>& problem) const {
    return first >= 0 && first <= problem.pixels - kPixels;
  }

  // Without `with_depth` only what is kept.
  __device__ __forceinline__ void load(const Problem<Map>& problem, bool with_depth) {
    const Map* depth = problem.depth + image_start;
    const bool* valid = problem.valid == nullptr ? nullptr : problem.valid + image_start;
    if (problem.vectors && complete(problem)) {
      Pack<Map, kPixels> depths{};
      if (with_depth) depths = load_pack<kPixels>(depth, first);
      Pack<bool, kPixels> valids;
      if (valid != nullptr) valids = load_pack<kPixels>(valid, first);
#pragma unroll
      for (int k = 0; k < kPixels; ++k) {
        z[k] = to_acc(depths.x[k]);
        kept[k] = valid == nullptr || valids.x[k];
      }
    } else {
#pragma unroll
      for (int k = 0; k < kPixels; ++k) {
        const int pixel = first + k;
        const bool inside = pixel >= 0 && pixel < problem.pixels;
        kept[k] = inside && (valid == nullptr || valid[pixel]);
        z[k] = with_depth && kept[k] ? distilldepth::load(depth, pixel) : Acc(0);
      }
    }
  }

  // Calls body(k, a, b) for the pixels in order; pixels before the image get the ray of column `first + k` of row 0.
  template <typename Body>
  __device__ __forceinline__ void for_each_ray(const Problem<Map>& problem, const Camera<Acc>& camera,
                                               Body&& body) const {
    int v = first > 0 ? first / problem.width : 0;
    int u = first - v * problem.width;
    Acc b = (Acc(v) - camera.cy) / camera.fy;
#pragma unroll
    for (int k = 0; k < kPixels; ++k) {
      body(k, (Acc(u) - camera.cx) / camera.fx, b);
      if (++u == problem.width) {
        u = 0;
        b = (Acc(++v) - camera.cy) / camera.fy;
      }
    }
  }

  // Calls body(element, in_shared, whole) for the warp's chunks of points that this lane moves: `element` counts
  // numbers from the image's first, `in_shared` from the warp's first; `whole` if all of the chunk is inside the image.
  template <typename Body>
  __device__ __forceinline__ void for_each_chunk(const Problem<Map>& problem, Body&& body) const {
    const int64_t elements = int64_t{problem.pixels} * 3;
#pragma unroll
    for (int c = 0; c < 3; ++c) {
      const int in_shared = (c * kWarp + static_cast<int>(threadIdx.x % kWarp)) * kPixels;
      const int64_t element = int64_t{warp_first} * 3 + in_shared;
      body(element, in_shared, element >= 0 && element <= elements - kPixels);
    }
  }
};

template <typename Map>
__global__ void __launch_bounds__(kThreads)
    forward(const Problem<Map> problem, acc_t<Map>* points /* (B, H, W, 3) */) {
  using Acc = acc_t<Map>;
  using Pixels = Strip<Map>;
  alignas(kChunkBytes) __shared__ Acc staged[Pixels::kTile * 3];
  const int64_t image = blockIdx.x / problem.blocks_per_image;
  const int tile = blockIdx.x % problem.blocks_per_image;
  const Camera<Acc> camera(problem.intrinsics + image * 9);
  Pixels strip(problem, image, tile);
  strip.load(problem, /*with_depth=*/true);

  Acc mine[Pixels::kPixels * 3];
  strip.for_each_ray(problem, camera, [&](int k, Acc a, Acc b) {
    mine[3 * k] = strip.kept[k] ? a * strip.z[k] : kNan<Acc>;
    mine[3 * k + 1] = strip.kept[k] ? b * strip.z[k] : kNan<Acc>;
    mine[3 * k + 2] = strip.kept[k] ? strip.z[k] : kNan<Acc>;
  });
  Acc* of_warp = staged + threadIdx.x / kWarp * Pixels::kWarpPixels * 3;
  Pack<Acc, Pixels::kPixels> pack;
#pragma unroll
  for (int c = 0; c < 3; ++c) {
#pragma unroll
    for (int k = 0; k < Pixels::kPixels; ++k) pack.x[k] = mine[c * Pixels::kPixels + k];
    store_pack<Pixels::kPixels>(of_warp, (threadIdx.x % kWarp * 3 + c) * Pixels::kPixels, pack);
  }
  __syncwarp();
  Acc* of_image = points + strip.image_start * 3;
  strip.for_each_chunk(problem, [&](int64_t element, int in_shared, bool whole) {
    const auto chunk = load_pack<Pixels::kPixels>(of_warp, in_shared);
    if (whole) {
      store_pack<Pixels::kPixels>(of_image, element, chunk);
    } else {
#pragma unroll
      for (int k = 0; k < Pixels::kPixels; ++k) {
        if (element + k >= 0 && element + k < int64_t{problem.pixels} * 3) of_image[element + k] = chunk.x[k];
      }
    }
  });
}

// Sums of a z g_x, z g_x, b z g_y, z g_y.
constexpr int kSums = 4;

template <typename Map>
__global__ void __launch_bounds__(kThreads)
    backward(const Problem<Map> problem, const acc_t<Map>* grad_points /* (B, H, W, 3) */, bool grad_vectors,
             Map* grad_depth /* (B, H, W) */, double* sums /* (B, blocks_per_image, kSums) or null */) {
  using Acc = acc_t<Map>;
  using Pixels = Strip<Map>;
  alignas(kChunkBytes) __shared__ Acc staged[Pixels::kTile * 3];
  const int64_t image = blockIdx.x / problem.blocks_per_image;
  const Camera<Acc> camera(problem.intrinsics + image * 9);
  Acc* of_warp = staged + threadIdx.x / kWarp * Pixels::kWarpPixels * 3;
  double total[kSums] = {};
  for (int tile = blockIdx.x % problem.blocks_per_image; tile < problem.tiles_per_image;
       tile += problem.blocks_per_image) {
    Pixels strip(problem, image, tile);
    const Acc* of_image = grad_points + strip.image_start * 3;
    strip.for_each_chunk(problem, [&](int64_t element, int in_shared, bool whole) {
      Pack<Acc, Pixels::kPixels> chunk;
      if (whole && grad_vectors) {
        chunk = load_pack<Pixels::kPixels>(of_image, element);
      } else {
#pragma unroll
        for (int k = 0; k < Pixels::kPixels; ++k) {
          const bool inside = element + k >= 0 && element + k < int64_t{problem.pixels} * 3;
          chunk.x[k] = inside ? of_image[element + k] : Acc(0);
        }
      }
      store_pack<Pixels::kPixels>(of_warp, in_shared, chunk);
    });
    strip.load(problem, /*with_depth=*/sums != nullptr);
    __syncwarp();
    Acc g[Pixels::kPixels * 3];
#pragma unroll
    for (int c = 0; c < 3; ++c) {
      const auto pack = load_pack<Pixels::kPixels>(of_warp, (threadIdx.x % kWarp * 3 + c) * Pixels::kPixels);
#pragma unroll
      for (int k = 0; k < Pixels::kPixels; ++k) g[c * Pixels::kPixels + k] = pack.x[k];
    }
    __syncwarp();

    Acc part[kSums] = {};
    Pack<Map, Pixels::kPixels> result;
    strip.for_each_ray(problem, camera, [&](int k, Acc a, Acc b) {
      const bool kept = strip.kept[k];
      const Acc g_x = g[3 * k], g_y = g[3 * k + 1], g_z = g[3 * k + 2];
      result.x[k] = from_acc<Map>(kept ? a * g_x + b * g_y + g_z : Acc(0));
      const Acc z_x = kept ? strip.z[k] * g_x : Acc(0);
      const Acc z_y = kept ? strip.z[k] * g_y : Acc(0);
      part[0] += a * z_x;
      part[1] += z_x;
      part[2] += b * z_y;
      part[3] += z_y;
    });
#pragma unroll
    for (int s = 0; s < kSums; ++s) total[s] += static_cast<double>(part[s]);
    Map* depth_of_image = grad_depth + strip.image_start;
    if (strip.complete(problem)) {
      store_pack<Pixels::kPixels>(depth_of_image, strip.first, result);
    } else {
#pragma unroll
      for (int k = 0; k < Pixels::kPixels; ++k) {
        const int pixel = strip.first + k;
        if (pixel >= 0 && pixel < problem.pixels) depth_of_image[pixel] = result.x[k];
      }
    }
  }
  if (sums == nullptr) return;
  block_reduce<kThreads>(total, Sum<double>{});
  if (threadIdx.x == 0) {
#pragma unroll
    for (int s = 0; s < kSums; ++s) sums[int64_t{blockIdx.x} * kSums + s] = total[s];
  }
}

// One block per image adds the sums of the image's blocks in their order.
template <typename Acc>
__global__ void __launch_bounds__(kSumThreads)
    sum_intrinsics(const double* sums /* (B, blocks, kSums) */, int blocks, const Acc* intrinsics /* (B, 3, 3) */,
                   Acc* grad_intrinsics /* (B, 3, 3) */) {
  const int64_t image = blockIdx.x;
  double total[kSums] = {};
  for (int i = threadIdx.x; i < blocks; i += kSumThreads) {
#pragma unroll
    for (int s = 0; s < kSums; ++s) total[s] += sums[(image * blocks + i) * kSums + s];
  }
  block_reduce<kSumThreads>(total, Sum<double>{});
  if (threadIdx.x == 0) {
    const Camera<Acc> camera(intrinsics + image * 9);
    Acc* matrix = grad_intrinsics + image * 9;
#pragma unroll
    for (int k = 0; k < 9; ++k) matrix[k] = 0;
    matrix[0] = static_cast<Acc>(-total[0] / camera.fx);
    matrix[2] = static_cast<Acc>(-total[1] / camera.fx);
    matrix[4] = static_cast<Acc>(-total[2] / camera.fy);
    matrix[5] = static_cast<Acc>(-total[3] / camera.fy);
  }
}

template <typename Map>
Problem<Map> describe(const Tensor& depth, const Tensor& intrinsics, const std::optional<Tensor>& valid) {
  constexpr int kPixels = Strip<Map>::kPixels;
  const int64_t pixels = depth.size(1) * depth.size(2);
  STD_TORCH_CHECK(pixels < int64_t{1} << 30, "backproject: H * W must be less than 2^30, got ", pixels);
  Problem<Map> problem;
  problem.depth = const_data<Map>(depth);
  problem.intrinsics = const_data<acc_t<Map>>(intrinsics);
  problem.valid = const_data<bool>(valid);
  problem.images = depth.size(0);
  problem.pixels = static_cast<int>(pixels);
  problem.width = static_cast<int>(depth.size(2));
  problem.tiles_per_image = static_cast<int>(ceil_div(pixels + kPixels - 1, Strip<Map>::kTile));
  problem.blocks_per_image = problem.tiles_per_image;
  problem.vectors =
      aligned(problem.depth, kPixels) && (problem.valid == nullptr || aligned(problem.valid, kPixels));
  return problem;
}

inline unsigned grid(int64_t blocks) {
  STD_TORCH_CHECK(blocks < int64_t{1} << 31, "backproject: the batch is too large for one call");
  return static_cast<unsigned>(blocks);
}

template <typename Map>
void launch_forward(const Tensor& depth, const Tensor& intrinsics, const std::optional<Tensor>& valid,
                    const Tensor& points) {
  const Problem<Map> problem = describe<Map>(depth, intrinsics, valid);
  forward<Map><<<grid(problem.images * problem.blocks_per_image), kThreads, 0, current_stream(depth)>>>(
      problem, mutable_data<acc_t<Map>>(points));
  check_launch("backproject");
}

template <typename Map>
void launch_backward(const Tensor& grad_points, const Tensor& depth, const Tensor& intrinsics,
                     const std::optional<Tensor>& valid, const Tensor& grad_depth, const Tensor& grad_intrinsics,
                     bool need_intrinsics) {
  using Acc = acc_t<Map>;
  Problem<Map> problem = describe<Map>(depth, intrinsics, valid);
  const int64_t wanted = ceil_div(int64_t{multiprocessors(depth)} * kBlocksPerProcessor, problem.images);
  problem.blocks_per_image = static_cast<int>(std::min<int64_t>(problem.tiles_per_image, wanted));
  const Tensor sums =
      new_empty(depth, {need_intrinsics ? problem.images : 0, problem.blocks_per_image, kSums}, ScalarType::Double);
  const cudaStream_t stream = current_stream(depth);
  const Acc* grad = const_data<Acc>(grad_points);
  backward<Map><<<grid(problem.images * problem.blocks_per_image), kThreads, 0, stream>>>(
      problem, grad, aligned(grad, Strip<Map>::kPixels), mutable_data<Map>(grad_depth),
      need_intrinsics ? mutable_data<double>(sums) : nullptr);
  check_launch("backproject_backward");
  if (!need_intrinsics) return;
  sum_intrinsics<Acc><<<grid(problem.images), kSumThreads, 0, stream>>>(
      const_data<double>(sums), problem.blocks_per_image, problem.intrinsics, mutable_data<Acc>(grad_intrinsics));
  check_launch("backproject_backward");
}

Tensor backproject(const Tensor& depth, const Tensor& intrinsics, const std::optional<Tensor>& valid) {
  const DeviceGuard guard(depth);
  const Tensor points =
      new_empty(depth, {depth.size(0), depth.size(1), depth.size(2), 3}, acc_dtype(depth.scalar_type()));
  if (depth.numel() == 0) return points;
  dispatch(depth.scalar_type(), "backproject", [&](auto tag) {
    launch_forward<typename decltype(tag)::type>(depth, intrinsics, valid, points);
  });
  return points;
}

// Gradients of depth, in its type, and of the intrinsics, (0, 3, 3) if they are not needed.
std::tuple<Tensor, Tensor> backproject_backward(const Tensor& grad_points, const Tensor& depth,
                                                const Tensor& intrinsics, const std::optional<Tensor>& valid,
                                                bool need_intrinsics) {
  const DeviceGuard guard(depth);
  const ScalarType acc = acc_dtype(depth.scalar_type());
  const int64_t images = depth.size(0), matrices = need_intrinsics ? images : 0;
  const Tensor grad_depth = new_empty(depth, {images, depth.size(1), depth.size(2)}, depth.scalar_type());
  if (depth.numel() == 0) return {grad_depth, new_zeros(depth, {matrices, 3, 3}, acc)};
  const Tensor grad_intrinsics = new_empty(depth, {matrices, 3, 3}, acc);
  dispatch(depth.scalar_type(), "backproject_backward", [&](auto tag) {
    launch_backward<typename decltype(tag)::type>(grad_points, depth, intrinsics, valid, grad_depth, grad_intrinsics,
                                                  need_intrinsics);
  });
  return {grad_depth, grad_intrinsics};
}

__global__ void __launch_bounds__(kThreads)
    count_valid(const bool* valid /* (count,) */, int64_t count, int64_t* counts /* (tiles,) */) {
  int found = 0;
#pragma unroll
  for (int round = 0; round < kCloudRounds; ++round) {
    const int64_t at = blockIdx.x * kCloudTile + round * kThreads + threadIdx.x;
    if (at < count) found += valid[at];
  }
  found = block_sum<kThreads>(found);
  if (threadIdx.x == 0) counts[blockIdx.x] = found;
}

// One block turns the tiles' counts into their places in the cloud, in place; the entry after the last is the sum.
__global__ void __launch_bounds__(kScanThreads) scan_counts(int64_t* counts /* (tiles + 1,) */, int64_t tiles) {
  __shared__ int64_t before[kScanThreads];
  const int64_t share = ceil_div(tiles, kScanThreads);
  const int64_t begin = min(tiles, share * threadIdx.x);
  const int64_t end = min(tiles, begin + share);
  int64_t sum = 0;
  for (int64_t i = begin; i < end; ++i) sum += counts[i];
  before[threadIdx.x] = sum;
  __syncthreads();
  for (int step = 1; step < kScanThreads; step *= 2) {
    const int64_t earlier = threadIdx.x >= step ? before[threadIdx.x - step] : 0;
    __syncthreads();
    before[threadIdx.x] += earlier;
    __syncthreads();
  }
  int64_t place = before[threadIdx.x] - sum;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t count = counts[i];
    counts[i] = place;
    place += count;
  }
  if (threadIdx.x == kScanThreads - 1) counts[tiles] = before[threadIdx.x];
}

template <typename Map>
struct WritePoint {
  Problem<Map> problem;
  acc_t<Map>* points;  // (P, 3)

  __device__ __forceinline__ void operator()(int64_t pixel, int64_t place) const {
    using Acc = acc_t<Map>;
    const int64_t image = pixel / problem.pixels;
    const int in_image = static_cast<int>(pixel - image * problem.pixels);
    const int v = in_image / problem.width;
    const int u = in_image - v * problem.width;
    const Camera<Acc> camera(problem.intrinsics + image * 9);
    const Acc z = load(problem.depth, pixel);
    points[3 * place] = (Acc(u) - camera.cx) / camera.fx * z;
    points[3 * place + 1] = (Acc(v) - camera.cy) / camera.fy * z;
    points[3 * place + 2] = z;
  }
};

// A colour of 16 bytes, complex128. Aligned like its parts: nobody promises that an image begins at a multiple of 16.
struct Wide {
  uint64_t parts[2];
};

// Colours are moved as bytes of their size, whatever they mean.
template <typename Colour>
struct WriteColour {
  const Colour* image;  // (B, 3, H * W)
  Colour* colours;      // (P, 3)
  int64_t pixels;       // H * W

  __device__ __forceinline__ void operator()(int64_t pixel, int64_t place) const {
    const int64_t number = pixel / pixels;
    const Colour* source = image + number * 3 * pixels + (pixel - number * pixels);
#pragma unroll
    for (int c = 0; c < 3; ++c) colours[3 * place + c] = source[c * pixels];
  }
};

// Calls `write(pixel, place)` for the valid pixels, which get consecutive places in their order. Without `valid` every
// pixel's place is its number and `places` is not read.
template <typename Write>
__global__ void __launch_bounds__(kThreads)
    compact(const bool* valid /* (count,) or null */, const int64_t* places /* (tiles,) */, int64_t count,
            Write write) {
  __shared__ int per_warp[kThreads / kWarp];
  const int64_t first = blockIdx.x * kCloudTile;
  int64_t place = valid == nullptr ? first : places[blockIdx.x];
  const unsigned lanes_before = (1u << threadIdx.x % kWarp) - 1;
  const int warp = threadIdx.x / kWarp;
  for (int round = 0; round < kCloudRounds; ++round) {
    const int64_t pixel = first + round * kThreads + threadIdx.x;
    const bool kept = pixel < count && (valid == nullptr || valid[pixel]);
    const unsigned votes = __ballot_sync(kAllLanes, kept);
    __syncthreads();  // the last round's readers are done
    if (threadIdx.x % kWarp == 0) per_warp[warp] = __popc(votes);
    __syncthreads();
    int before = __popc(votes & lanes_before), all = 0;
#pragma unroll
    for (int w = 0; w < kThreads / kWarp; ++w) {
      before += w < warp ? per_warp[w] : 0;
      all += per_warp[w];
    }
    if (kept) write(pixel, place + before);
    place += all;
  }
}

template <typename Colour>
void launch_colours(const Tensor& image, const bool* valid, const int64_t* places, int64_t count, const Tensor& colours,
                    cudaStream_t stream) {
  const WriteColour<Colour> write{const_data<Colour>(image), mutable_data<Colour>(colours),
                                  image.size(2) * image.size(3)};
  compact<<<grid(ceil_div(count, kCloudTile)), kThreads, 0, stream>>>(valid, places, count, write);
  check_launch("point_cloud");
}

template <typename Map>
void launch_points(const Tensor& depth, const Tensor& intrinsics, const std::optional<Tensor>& valid,
                   const int64_t* places, const Tensor& points, cudaStream_t stream) {
  const WritePoint<Map> write{describe<Map>(depth, intrinsics, valid), mutable_data<acc_t<Map>>(points)};
  compact<<<grid(ceil_div(depth.numel(), kCloudTile)), kThreads, 0, stream>>>(const_data<bool>(valid), places,
                                                                              depth.numel(), write);
  check_launch("point_cloud");
}

std::tuple<Tensor, Tensor> point_cloud(const Tensor& depth, const Tensor& intrinsics, const Tensor& image,
                                       const std::optional<Tensor>& valid) {
  const DeviceGuard guard(depth);
  const int64_t count = depth.numel();
  const int64_t tiles = ceil_div(count, kCloudTile);
  const cudaStream_t stream = current_stream(depth);
  const bool* valid_data = const_data<bool>(valid);
  int64_t points_count = count;
  Tensor places = new_empty(depth, {tiles + 1}, ScalarType::Long);
  int64_t* places_data = mutable_data<int64_t>(places);
  if (valid_data != nullptr && count > 0) {
    count_valid<<<grid(tiles), kThreads, 0, stream>>>(valid_data, count, places_data);
    check_launch("point_cloud");
    scan_counts<<<1, kScanThreads, 0, stream>>>(places_data, tiles);
    check_launch("point_cloud");
    // Only the device knows how long the cloud is: the one place where the host waits.
    check(cudaMemcpyAsync(&points_count, places_data + tiles, sizeof(int64_t), cudaMemcpyDeviceToHost, stream),
          "point_cloud");
    check(cudaStreamSynchronize(stream), "point_cloud");
  }
  const Tensor points = new_empty(depth, {points_count, 3}, acc_dtype(depth.scalar_type()));
  const Tensor colours = new_empty(image, {points_count, 3}, image.scalar_type());
  if (points_count == 0) return {points, colours};
  dispatch(depth.scalar_type(), "point_cloud", [&](auto tag) {
    launch_points<typename decltype(tag)::type>(depth, intrinsics, valid, places_data, points, stream);
  });
  switch (image.element_size()) {
    case 1:
      launch_colours<uint8_t>(image, valid_data, places_data, count, colours, stream);
      break;
    case 2:
      launch_colours<uint16_t>(image, valid_data, places_data, count, colours, stream);
      break;
    case 4:
      launch_colours<uint32_t>(image, valid_data, places_data, count, colours, stream);
      break;
    case 8:
      launch_colours<uint64_t>(image, valid_data, places_data, count, colours, stream);
      break;
    case 16:
      launch_colours<Wide>(image, valid_data, places_data, count, colours, stream);
      break;
    default:
      STD_TORCH_CHECK(false, "point_cloud: image must have elements of 1, 2, 4, 8 or 16 bytes, got ",
                      image.element_size());
  }
  return {points, colours};
}

}  // namespace
}  // namespace distilldepth

STABLE_TORCH_LIBRARY_IMPL(distilldepth, CUDA, m) {
  m.impl("backproject", TORCH_BOX(&distilldepth::backproject));
  m.impl("backproject_backward", TORCH_BOX(&distilldepth::backproject_backward));
  m.impl("point_cloud", TORCH_BOX(&distilldepth::point_cloud));
}
