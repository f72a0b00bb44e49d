// Local-global loss on a GPU: crops of the prediction are sampled as they are read.
//
// The loss reads each crop pixel a few times, and a cluster keeps what it has read in shared memory; without clusters
// the slices that the loss sorts into global memory hold the samples, in no order that is a crop. The gradient of the
// crops lies in global memory (N, h, w) between two kernels, because a pixel of the prediction takes from many crop
// pixels: the last kernel gathers, for every pixel of the prediction, from the rows and columns that touch it of each crop
// of its image. Unlike a scatter by atomics this adds in one order and writes once.
#include "normalise_cuda.cuh"

namespace distilldepth {
namespace {

constexpr int kThreads = 256;

// Neighbours on both sides of a sample point along one axis, and the share of the second.
template <typename Value>
struct Tap {
  int below, above;
  Value share;
};

// Crop rows or columns that touch a row or column of the prediction: [begin, end).
struct Touching {
  int begin, end;
};

struct Point {
  int below, above;
  double share;
};

// As the reference computes it, in float64. `count` points between `first` and `last`, on a map of `size`.
__device__ Point sample_point(double first, double last, int i, int count, int size) {
  const double at = first + normalise::product(i + 0.5, (last - first) / count) - 0.5;
  const double inside = fmin(fmax(at, 0.0), static_cast<double>(size - 1));
  const double below = floor(inside);
  // ceil, not below + 1: a sample on a pixel has one neighbour, and what is beside it must not leak in as 0 * NaN.
  return {static_cast<int>(below), static_cast<int>(ceil(inside)), inside - below};
}

// The points grow with i, so those that touch a pixel are a stretch: from the first with above >= pixel to the first
// with below > pixel.
__device__ Touching touching_points(double first, double last, int count, int size, int pixel) {
  const auto start = [&](bool is_end) {
    int low = 0, high = count;
    while (low < high) {
      const int middle = low + (high - low) / 2;
      const Point point = sample_point(first, last, middle, count, size);
      if (is_end ? point.below > pixel : point.above >= pixel) {
        high = middle;
      } else {
        low = middle + 1;
      }
    }
    return low;
  };
  return {start(false), start(true)};
}

template <typename Value>
struct Sampling {
  int64_t crops;
  int batch, height, width;       // of the prediction
  int crop_height, crop_width;
  const double* boxes;            // (crops, 4)
  const int64_t* image_index;     // (crops,)
  Tap<Value>* taps[2];            // y (crops, crop_height), x (crops, crop_width)
  // Not used without a gradient.
  Touching* touching[2];          // y (crops, height), x (crops, width)
  int* by_image;                  // (crops,) numbers of the crops, ordered by image and number
  int* first_of;                  // (batch + 1,) where each image's crops begin in `by_image`

  void carve(normalise::Carver& carver) {
    taps[0] = carver.take<Tap<Value>>(crops * crop_height);
    taps[1] = carver.take<Tap<Value>>(crops * crop_width);
    touching[0] = carver.take<Touching>(crops * height);
    touching[1] = carver.take<Touching>(crops * width);
    by_image = carver.take<int>(crops);
    first_of = carver.take<int>(batch + 1);
  }

  // Entries of a crop in the tables of an axis.
  __host__ __device__ int entries(int axis, bool need_gradient) const {
    const int points = axis == 0 ? crop_height : crop_width, pixels = axis == 0 ? height : width;
    return points + (need_gradient ? pixels : 0);
  }
};

// The crops of each image, by counting those that come before: there are few. `item` counts both tables' entries.
template <typename Value>
__device__ void list_crops(const Sampling<Value>& sampling, int64_t item) {
  const bool is_crop = item < sampling.crops;
  if (!is_crop && item - sampling.crops > sampling.batch) return;
  const int64_t image = is_crop ? sampling.image_index[item] : item - sampling.crops;
  int before = 0;
#pragma unroll 4
  for (int64_t crop = 0; crop < sampling.crops; ++crop) {
    const int64_t other = sampling.image_index[crop];
    before += other < image || (is_crop && other == image && crop < item);
  }
  if (is_crop) {
    sampling.by_image[before] = static_cast<int>(item);
  } else {
    sampling.first_of[image] = before;
  }
}

// One thread per entry of a table: of the rows, of the columns (`axis` 1), and of the lists of crops.
template <typename Value>
__global__ void __launch_bounds__(kThreads) tabulate(Sampling<Value> sampling, bool need_gradient) {
  int64_t item = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  int axis = 0;
  for (; axis < 2 && item >= sampling.crops * sampling.entries(axis, need_gradient); ++axis) {
    item -= sampling.crops * sampling.entries(axis, need_gradient);
  }
  if (axis == 2) {
    if (need_gradient) list_crops(sampling, item);
    return;
  }
  const int count = axis == 0 ? sampling.crop_height : sampling.crop_width;
  const int size = axis == 0 ? sampling.height : sampling.width;
  const int entries = sampling.entries(axis, need_gradient);
  const int64_t crop = item / entries;
  const int i = static_cast<int>(item % entries);
  const double* box = sampling.boxes + crop * 4;
  const double first = box[axis == 0 ? 1 : 0], last = box[axis == 0 ? 3 : 2];
  if (i < count) {
    const Point point = sample_point(first, last, i, count, size);
    Tap<Value>* taps = axis == 0 ? sampling.taps[0] : sampling.taps[1];
    taps[crop * count + i] = {point.below, point.above, static_cast<Value>(point.share)};
  } else {
    Touching* touching = axis == 0 ? sampling.touching[0] : sampling.touching[1];
    touching[crop * size + i - count] = touching_points(first, last, count, size, i - count);
  }
}

__device__ __forceinline__ float multiply_add(float a, float b, float c) { return __fmaf_rn(a, b, c); }
__device__ __forceinline__ double multiply_add(double a, double b, double c) { return __fma_rn(a, b, c); }

// A crop of the prediction, and the teacher's map of it.
template <typename Map>
struct Crops {
  using Value = acc_t<Map>;
  static constexpr int kBatch = 2;  // a sample is four loads
  const Map* prediction_;  // (batch, height, width)
  const Map* targets;      // (crops, crop pixels)
  const bool* valid_;      // (crops, crop pixels) or null
  Sampling<Value> sampling;

  __device__ __forceinline__ int64_t place(int64_t crop, int pixel) const {
    return crop * sampling.crop_height * sampling.crop_width + pixel;
  }
  __device__ __forceinline__ bool valid(int64_t crop, int pixel) const {
    return valid_ == nullptr || valid_[place(crop, pixel)];
  }
  __device__ __forceinline__ Value target(int64_t crop, int pixel) const {
    return normalise::one_zero(load(targets, place(crop, pixel)));
  }
  // Spelled with explicit roundings: a sample must have the same bits in every pass.
  __device__ __forceinline__ Value prediction(int64_t crop, int pixel) const {
    const int64_t image = sampling.image_index[crop];
    // Nobody has looked at the index, which would wait for the device.
    if (image < 0 || image >= sampling.batch) return normalise::kNaN<Value>;
    const int row = pixel / sampling.crop_width, column = pixel - row * sampling.crop_width;
    const Tap<Value> y = sampling.taps[0][crop * sampling.crop_height + row];
    const Tap<Value> x = sampling.taps[1][crop * sampling.crop_width + column];
    const Map* top = prediction_ + (image * sampling.height + y.below) * sampling.width;
    const Map* bottom = prediction_ + (image * sampling.height + y.above) * sampling.width;
    const Value left = mix(load(top, x.below), load(bottom, x.below), y.share);
    const Value right = mix(load(top, x.above), load(bottom, x.above), y.share);
    return normalise::one_zero(mix(left, right, x.share));
  }
  static __device__ __forceinline__ Value mix(Value a, Value b, Value share) {
    return multiply_add(b, share, normalise::product(a, 1 - share));
  }
};

template <typename Value>
__device__ __forceinline__ Value weight(const Tap<Value>& tap, int pixel) {
  return (tap.below == pixel ? 1 - tap.share : Value(0)) + (tap.above == pixel ? tap.share : Value(0));
}

// `gradient` (batch, height, width) from that of the crops (crops, crop_height, crop_width). One thread per pixel, and
// the pixels of a block are of one image.
template <typename Value>
__global__ void __launch_bounds__(kThreads)
gather_gradient(Sampling<Value> sampling, const Value* crop_gradient, Value* gradient) {
  const int pixels = sampling.height * sampling.width;
  const int blocks = (pixels + kThreads - 1) / kThreads;
  const int64_t image = blockIdx.x / blocks;
  const int64_t pixel = static_cast<int64_t>(blockIdx.x % blocks) * kThreads + threadIdx.x;
  if (pixel >= pixels) return;
  const int y = static_cast<int>(pixel) / sampling.width, x = static_cast<int>(pixel) - y * sampling.width;
  Value sum = 0;
  for (int at = sampling.first_of[image], end = sampling.first_of[image + 1]; at < end; ++at) {
    const int64_t crop = sampling.by_image[at];
    const Touching rows = sampling.touching[0][crop * sampling.height + y];
    if (rows.begin >= rows.end) continue;  // for most of a block at once
    const Touching columns = sampling.touching[1][crop * sampling.width + x];
    if (columns.begin >= columns.end) continue;
    const Tap<Value>* y_taps = sampling.taps[0] + crop * sampling.crop_height;
    const Tap<Value>* x_taps = sampling.taps[1] + crop * sampling.crop_width;
    for (int row = rows.begin; row < rows.end; ++row) {
      const Value* line = crop_gradient + (crop * sampling.crop_height + row) * sampling.crop_width;
      Value along = 0;
      for (int column = columns.begin; column < columns.end; ++column) {
        along += line[column] * weight(x_taps[column], x);
      }
      sum += along * weight(y_taps[row], y);
    }
  }
  gradient[image * pixels + pixel] = sum;
}

template <typename Map>
void run(
    const normalise::Call& call, const normalise::Plan& plan, const Tensor& prediction, const Tensor& targets,
    const Tensor& boxes, const Tensor& image_index, const std::optional<Tensor>& valid, const Tensor& loss,
    const Tensor& gradient, const Tensor& scale, bool need_gradient) {
  using Value = acc_t<Map>;
  Sampling<Value> sampling{};
  sampling.crops = plan.images;
  sampling.batch = static_cast<int>(prediction.size(0));
  sampling.height = static_cast<int>(prediction.size(1));
  sampling.width = static_cast<int>(prediction.size(2));
  sampling.crop_height = plan.height;
  sampling.crop_width = plan.width;
  sampling.boxes = const_data<double>(boxes);
  sampling.image_index = const_data<int64_t>(image_index);

  const auto carve = [&](void* base, Value*& crop_gradient) {
    normalise::Carver carver(base);
    sampling.carve(carver);
    crop_gradient = carver.take<Value>(need_gradient ? plan.images * plan.pixels : 0);
    return carver.used();
  };
  Value* crop_gradient = nullptr;
  const Tensor memory = normalise::allocate(call.like, carve(nullptr, crop_gradient));
  carve(memory.mutable_data_ptr(), crop_gradient);

  const int64_t of_crop = sampling.entries(0, need_gradient) + sampling.entries(1, need_gradient);
  const int64_t of_lists = need_gradient ? sampling.crops + sampling.batch + 1 : 0;
  launch(call, tabulate<Value>, ceil_div(sampling.crops * of_crop + of_lists, kThreads), kThreads, 0, sampling,
         need_gradient);
  const Crops<Map> crops{const_data<Map>(prediction), const_data<Map>(targets), const_data<bool>(valid), sampling};
  const normalise::Results<Value> results{
      mutable_data<Value>(loss), mutable_data<Value>(scale), need_gradient ? crop_gradient : nullptr};
  normalise::run(call, plan, crops, results);
  if (need_gradient) {
    const int64_t blocks = ceil_div(static_cast<int64_t>(sampling.height) * sampling.width, kThreads);
    launch(call, gather_gradient<Value>, sampling.batch * blocks, kThreads, 0, sampling, crop_gradient,
           mutable_data<Value>(gradient));
  }
}

// Loss, gradient over scale, scale.
std::tuple<Tensor, Tensor, Tensor> crop_ssi(
    const Tensor& prediction, const Tensor& targets, const Tensor& boxes, const Tensor& image_index,
    const std::optional<Tensor>& valid, std::vector<int64_t> segments, int64_t contexts, double spread_eps,
    bool need_gradient) {
  constexpr const char* op = "crop_ssi";
  const DeviceGuard guard(prediction);
  const normalise::Call call{op, prediction, current_stream(prediction)};
  const ScalarType acc = acc_dtype(prediction.scalar_type());
  const Tensor loss = new_empty(prediction, {}, acc), scale = new_empty(prediction, {}, acc);
  const Tensor gradient =
      need_gradient ? new_empty(prediction, {prediction.size(0), prediction.size(1), prediction.size(2)}, acc)
                    : new_empty(prediction, {0}, acc);
  const normalise::Plan plan = normalise::make_plan(
      op, targets.size(0), targets.size(1), targets.size(2), segments, contexts, spread_eps, /*mean_per_image=*/true);
  STD_TORCH_CHECK(prediction.size(1) * prediction.size(2) <= INT_MAX, op, ": maps must have fewer than 2^31 pixels");
  if (prediction.numel() == 0 || targets.numel() == 0) {
    if (gradient.numel() != 0) {
      const size_t bytes = gradient.numel() * gradient.element_size();
      check(cudaMemsetAsync(gradient.mutable_data_ptr(), 0, bytes, call.stream), op);
    }
    return {new_zeros(prediction, {}, acc), gradient, new_zeros(prediction, {}, acc)};
  }
  dispatch(prediction.scalar_type(), op, [&](auto tag) {
    using Map = typename decltype(tag)::type;
    run<Map>(call, plan, prediction, targets, boxes, image_index, valid, loss, gradient, scale, need_gradient);
  });
  return {loss, gradient, scale};
}

}  // namespace
}  // namespace distilldepth

STABLE_TORCH_LIBRARY_IMPL(distilldepth, CUDA, m) { m.impl("crop_ssi", TORCH_BOX(&distilldepth::crop_ssi)); }
