// Depth to points on the CPU, forward and backward, and the cloud without gaps.
//
// X = column[u] z, Y = row[v] z, Z = z, with column[u] = (u - cx) / fx and row[v] = (v - cy) / fy. So
//   dL/dz  = column gX + row gY + gZ,
//   dL/dcx = -1/fx sum gX z,   dL/dfx = -1/fx sum column gX z,   and the same in y.
// A task is a fixed number of whole rows, so no sum depends on the number of threads.
#include "cpu.h"

#include <cstring>
#include <limits>
#include <tuple>
#include <vector>

namespace distilldepth {
namespace {

// The rows of all images as tasks of about 16384 pixels; each lies within one image.
struct Tasks {
  int64_t height, width, rows, per_image, count;

  Tasks(int64_t images, int64_t height, int64_t width)
      : height(height),
        width(width),
        rows(std::max<int64_t>(1, 16384 / std::max<int64_t>(1, width))),
        per_image((height + rows - 1) / rows),
        count(images * height * width == 0 ? 0 : images * per_image) {}

  int64_t image(int64_t task) const { return task / per_image; }
  int64_t first_row(int64_t task) const { return task % per_image * rows; }
  int64_t last_row(int64_t task) const { return std::min(height, first_row(task) + rows); }
  int64_t first_pixel(int64_t task) const { return (image(task) * height + first_row(task)) * width; }
};

// A pinhole camera from its matrix, (3, 3).
template <class Value>
struct Camera {
  Value fx, cx, fy, cy;

  explicit Camera(const Value* matrix) : fx(matrix[0]), cx(matrix[2]), fy(matrix[4]), cy(matrix[5]) {}

  std::vector<Value> columns(int64_t width) const {
    std::vector<Value> result(width);
    for (int64_t u = 0; u < width; ++u) result[u] = (static_cast<Value>(u) - cx) / fx;
    return result;
  }
  Value row(int64_t v) const { return (static_cast<Value>(v) - cy) / fy; }
};

// f.template operator()<Element, Value>() for the types of the depth and of the intrinsics; results have the latter.
template <class F>
decltype(auto) dispatch_depth(const char* op, const Tensor& depth, const Tensor& intrinsics, const F& f) {
  return dispatch(op, depth.scalar_type(), [&]<class Element>() {
    return intrinsics.scalar_type() == ScalarType::Double ? f.template operator()<Element, double>()
                                                          : f.template operator()<Element, float>();
  });
}

template <class Value>
inline constexpr Value kNaN = std::numeric_limits<Value>::quiet_NaN();

// points (width, 3), depth and columns (width,), valid (width,), which is not read without `masked`.
template <bool masked, class Element, class Value>
void write_row(Value* __restrict points, const Element* __restrict depth, const uint8_t* __restrict valid,
               const Value* __restrict columns, Value row, int64_t width) {
  for (int64_t u = 0; u < width; ++u) {
    const Value value = static_cast<Value>(load(depth[u]));
    const Value z = !masked || valid[u] ? value : kNaN<Value>;
    points[3 * u] = columns[u] * z;
    points[3 * u + 1] = row * z;
    points[3 * u + 2] = z;
  }
}

Tensor backproject(Tensor depth, Tensor intrinsics, std::optional<Tensor> valid) {
  const int64_t images = depth.size(0), height = depth.size(1), width = depth.size(2);
  Tensor points = make({images, height, width, 3}, intrinsics.scalar_type());
  const uint8_t* kept = valid_data(valid);  // (images, height, width)
  const Tasks tasks(images, height, width);
  dispatch_depth("backproject", depth, intrinsics, [&]<class Element, class Value>() {
    const Element* z = depth.const_data_ptr<Element>();  // (images, height, width)
    const Value* matrices = intrinsics.const_data_ptr<Value>();  // (images, 3, 3)
    Value* to = points.mutable_data_ptr<Value>();  // (images, height, width, 3)
    parallel_tasks(tasks.count, [&](int64_t task) {
      const Camera<Value> camera(matrices + 9 * tasks.image(task));
      const std::vector<Value> columns = camera.columns(width);
      int64_t at = tasks.first_pixel(task);
      for (int64_t v = tasks.first_row(task); v < tasks.last_row(task); ++v, at += width) {
        if (kept) {
          write_row<true>(to + 3 * at, z + at, kept + at, columns.data(), camera.row(v), width);
        } else {
          write_row<false>(to + 3 * at, z + at, kept, columns.data(), camera.row(v), width);
        }
      }
    });
  });
  return points;
}

// What the pixels of some rows add to the gradient of the intrinsics, without the factors -1/fx and -1/fy.
struct IntrinsicsSums {
  double fx = 0, cx = 0, fy = 0, cy = 0;
};

// Adds one row to sums kept per column: of gX z, gY z, row gY z. grad_points (width, 3), all others (width,).
template <bool masked, class Element, class Value>
void backward_row(Value* __restrict grad_depth, double* __restrict x_sums, double* __restrict y_sums,
                  double* __restrict row_sums, const Value* __restrict grad_points, const Element* __restrict depth,
                  const uint8_t* __restrict valid, const Value* __restrict columns, Value row, int64_t width) {
  const double wide_row = row;
  for (int64_t u = 0; u < width; ++u) {
    const bool kept = !masked || valid[u];
    const Value x = grad_points[3 * u], y = grad_points[3 * u + 1], z = grad_points[3 * u + 2];
    const double wide = static_cast<double>(load(depth[u]));
    const Value gradient = columns[u] * x + row * y + z;
    const double x_term = kept ? x * wide : 0.0, y_term = kept ? y * wide : 0.0;
    grad_depth[u] = kept ? gradient : Value{0};
    x_sums[u] += x_term;
    y_sums[u] += y_term;
    row_sums[u] += wide_row * y_term;
  }
}

std::tuple<Tensor, Tensor> backproject_backward(Tensor grad_points, Tensor depth, Tensor intrinsics,
                                                std::optional<Tensor> valid) {
  const int64_t images = depth.size(0), height = depth.size(1), width = depth.size(2);
  Tensor grad_depth = make({images, height, width}, intrinsics.scalar_type());
  Tensor grad_intrinsics = make({images, 3, 3}, intrinsics.scalar_type());
  const uint8_t* kept = valid_data(valid);  // (images, height, width)
  const Tasks tasks(images, height, width);
  dispatch_depth("backproject_backward", depth, intrinsics, [&]<class Element, class Value>() {
    const Value* from = grad_points.const_data_ptr<Value>();  // (images, height, width, 3)
    const Element* z = depth.const_data_ptr<Element>();  // (images, height, width)
    const Value* matrices = intrinsics.const_data_ptr<Value>();  // (images, 3, 3)
    Value* to = grad_depth.mutable_data_ptr<Value>();  // (images, height, width)
    Value* to_matrices = grad_intrinsics.mutable_data_ptr<Value>();  // (images, 3, 3)
    std::vector<IntrinsicsSums> sums(tasks.count);
    parallel_tasks(tasks.count, [&](int64_t task) {
      const Camera<Value> camera(matrices + 9 * tasks.image(task));
      const std::vector<Value> columns = camera.columns(width);
      std::vector<double> x_sums(width), y_sums(width), row_sums(width);
      int64_t at = tasks.first_pixel(task);
      for (int64_t v = tasks.first_row(task); v < tasks.last_row(task); ++v, at += width) {
        const auto add = kept ? backward_row<true, Element, Value> : backward_row<false, Element, Value>;
        add(to + at, x_sums.data(), y_sums.data(), row_sums.data(), from + 3 * at, z + at, kept ? kept + at : nullptr,
            columns.data(), camera.row(v), width);
      }
      IntrinsicsSums& sum = sums[task];
      for (int64_t u = 0; u < width; ++u) {
        sum.fx += columns[u] * x_sums[u];
        sum.cx += x_sums[u];
        sum.fy += row_sums[u];
        sum.cy += y_sums[u];
      }
    });
    for (int64_t image = 0; image < images; ++image) {
      IntrinsicsSums sum;
      for (int64_t k = 0; tasks.count > 0 && k < tasks.per_image; ++k) {
        const IntrinsicsSums& part = sums[image * tasks.per_image + k];
        sum.fx += part.fx;
        sum.cx += part.cx;
        sum.fy += part.fy;
        sum.cy += part.cy;
      }
      const Camera<Value> camera(matrices + 9 * image);
      Value* matrix = to_matrices + 9 * image;
      std::fill_n(matrix, 9, Value{0});
      matrix[0] = static_cast<Value>(-sum.fx / camera.fx);
      matrix[2] = static_cast<Value>(-sum.cx / camera.fx);
      matrix[4] = static_cast<Value>(-sum.fy / camera.fy);
      matrix[5] = static_cast<Value>(-sum.cy / camera.fy);
    }
  });
  return std::make_tuple(grad_depth, grad_intrinsics);
}

// An image element of any dtype.
template <int bytes>
struct Bytes {
  unsigned char at[bytes];
};

// f.template operator()<Bytes>() for the size of an element.
template <class F>
void dispatch_bytes(size_t size, const F& f) {
  switch (size) {
    case 1:
      return f.template operator()<Bytes<1>>();
    case 2:
      return f.template operator()<Bytes<2>>();
    case 4:
      return f.template operator()<Bytes<4>>();
    case 8:
      return f.template operator()<Bytes<8>>();
    case 16:
      return f.template operator()<Bytes<16>>();
    default:
      STD_TORCH_CHECK(false, "point_cloud: image must have elements of 1, 2, 4, 8 or 16 bytes, got ", size);
  }
}

std::tuple<Tensor, Tensor> point_cloud(Tensor depth, Tensor intrinsics, Tensor image, std::optional<Tensor> valid) {
  const int64_t images = depth.size(0), height = depth.size(1), width = depth.size(2);
  const uint8_t* kept = valid_data(valid);  // (images, height, width)
  const Tasks tasks(images, height, width);
  // Where each task's points begin; after the last task, how many there are.
  std::vector<int64_t> begins(tasks.count + 1);
  parallel_tasks(tasks.count, [&](int64_t task) {
    const int64_t begin = tasks.first_pixel(task);
    const int64_t pixels = (tasks.last_row(task) - tasks.first_row(task)) * width;
    int64_t count = pixels;
    if (kept) {
      count = 0;
      for (int64_t i = begin; i < begin + pixels; ++i) count += kept[i] != 0;
    }
    begins[task + 1] = count;
  });
  for (int64_t task = 0; task < tasks.count; ++task) begins[task + 1] += begins[task];

  Tensor points = make({begins.back(), 3}, intrinsics.scalar_type());
  Tensor colours = make({begins.back(), 3}, image.scalar_type());
  dispatch_depth("point_cloud", depth, intrinsics, [&]<class Element, class Value>() {
    const Element* z = depth.const_data_ptr<Element>();  // (images, height, width)
    const Value* matrices = intrinsics.const_data_ptr<Value>();  // (images, 3, 3)
    Value* to = points.mutable_data_ptr<Value>();  // (points, 3)
    parallel_tasks(tasks.count, [&](int64_t task) {
      const Camera<Value> camera(matrices + 9 * tasks.image(task));
      const std::vector<Value> columns = camera.columns(width);
      int64_t at = tasks.first_pixel(task);
      Value* point = to + 3 * begins[task];
      for (int64_t v = tasks.first_row(task); v < tasks.last_row(task); ++v) {
        const Value row = camera.row(v);
        for (int64_t u = 0; u < width; ++u, ++at) {
          if (kept && !kept[at]) continue;
          const Value value = static_cast<Value>(load(z[at]));
          point[0] = columns[u] * value;
          point[1] = row * value;
          point[2] = value;
          point += 3;
        }
      }
    });
  });
  dispatch_bytes(image.element_size(), [&]<class Pixel>() {
    const Pixel* from = static_cast<const Pixel*>(image.const_data_ptr());  // (images, 3, height, width)
    Pixel* to = static_cast<Pixel*>(colours.mutable_data_ptr());  // (points, 3)
    const int64_t plane = height * width;
    parallel_tasks(tasks.count, [&](int64_t task) {
      const int64_t begin = tasks.first_pixel(task);
      const int64_t pixels = (tasks.last_row(task) - tasks.first_row(task)) * width;
      const Pixel* red = from + begin + 2 * plane * tasks.image(task);
      Pixel* colour = to + 3 * begins[task];
      for (int64_t i = 0; i < pixels; ++i) {
        if (kept && !kept[begin + i]) continue;
        for (int channel = 0; channel < 3; ++channel) colour[channel] = red[channel * plane + i];
        colour += 3;
      }
    });
  });
  return std::make_tuple(points, colours);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(distilldepth, CPU, m) {
  m.impl("backproject", TORCH_BOX(&backproject));
  m.impl("backproject_backward", TORCH_BOX(&backproject_backward));
  m.impl("point_cloud", TORCH_BOX(&point_cloud));
}

}  // namespace distilldepth
