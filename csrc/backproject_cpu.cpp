// Depth to points on the CPU, forward and backward, and the cloud without gaps.
//
// X = column[u] z, Y = row[v] z, Z = z, with column[u] = (u - cx) / fx and row[v] = (v - cy) / fy. So
//   dL/dz  = column gX + row gY + gZ,
//   dL/dcx = -1/fx sum gX z,   dL/dfx = -1/fx sum column gX z,   and the same in y.
// A task is a fixed number of whole rows, so no sum depends on the number of threads.
#include "cpu.h"

#include <array>
#include <cstring>
#include <limits>
#include <tuple>
#include <vector>

#ifdef __AVX512F__
#include <immintrin.h>
#endif

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

#ifdef __AVX512F__
// Where each number of a vector is found among the 16 of one vector and, from 16 on, those of another.
template <class F>
__m512i places(const F& place) {
  alignas(64) std::array<int32_t, 16> result;
  for (int32_t i = 0; i < 16; ++i) result[i] = place(i);
  return _mm512_load_si512(result.data());
}
#endif

// points (width, 3) from z and columns (width,). The compiler finds no good way to write every third number.
template <class Value>
void write_points(Value* __restrict points, const Value* __restrict z, const Value* __restrict columns, Value row,
                  int64_t width) {
  int64_t u = 0;
#ifdef __AVX512F__
  if constexpr (std::is_same_v<Value, float>) {
    // Number n of 48 is x of pixel n / 3, or its z, once times `row`.
    __m512i from[3];
    __m512 factor[3];
    for (int32_t part = 0; part < 3; ++part) {
      from[part] = places([&](int32_t i) { return (i + 16 * part) / 3 + ((i + 16 * part) % 3 == 0 ? 0 : 16); });
      alignas(64) float factors[16];
      for (int32_t i = 0; i < 16; ++i) factors[i] = (i + 16 * part) % 3 == 1 ? row : 1.0f;
      factor[part] = _mm512_load_ps(factors);
    }
    for (; u + 16 <= width; u += 16) {
      const __m512 depth = _mm512_loadu_ps(z + u), x = _mm512_mul_ps(depth, _mm512_loadu_ps(columns + u));
      for (int part = 0; part < 3; ++part) {
        const __m512 mixed = _mm512_permutex2var_ps(x, from[part], depth);
        _mm512_storeu_ps(points + 3 * u + 16 * part, _mm512_mul_ps(mixed, factor[part]));
      }
    }
  }
#endif
  for (; u < width; ++u) {
    points[3 * u] = columns[u] * z[u];
    points[3 * u + 1] = row * z[u];
    points[3 * u + 2] = z[u];
  }
}

// The coordinates of points (width, 3), each (width,).
template <class Value>
void read_points(Value* __restrict x, Value* __restrict y, Value* __restrict z, const Value* __restrict points,
                 int64_t width) {
  int64_t u = 0;
#ifdef __AVX512F__
  if constexpr (std::is_same_v<Value, float>) {
    Value* const to[3] = {x, y, z};
    // Coordinate c of pixel i is number 3 i + c of 48: first of the first 32 together, then of these and the last 16.
    __m512i first[3], second[3];
    for (int32_t c = 0; c < 3; ++c) {
      first[c] = places([&](int32_t i) { return 3 * i + c < 32 ? 3 * i + c : 0; });
      second[c] = places([&](int32_t i) { return 3 * i + c < 32 ? i : 3 * i + c - 16; });
    }
    for (; u + 16 <= width; u += 16) {
      const float* from = points + 3 * u;
      const __m512 a = _mm512_loadu_ps(from), b = _mm512_loadu_ps(from + 16), c = _mm512_loadu_ps(from + 32);
      for (int k = 0; k < 3; ++k) {
        const __m512 some = _mm512_permutex2var_ps(a, first[k], b);
        _mm512_storeu_ps(to[k] + u, _mm512_permutex2var_ps(some, second[k], c));
      }
    }
  }
#endif
  for (; u < width; ++u) {
    x[u] = points[3 * u];
    y[u] = points[3 * u + 1];
    z[u] = points[3 * u + 2];
  }
}

// A row of depth as Value, `instead` where it is not valid (may be null); in `line` if it must be changed.
template <class Element, class Value>
const Value* read_row(const Element* __restrict depth, const uint8_t* __restrict valid, Value instead,
                      Value* __restrict line, int64_t width) {
  if constexpr (std::is_same_v<Element, Value>) {
    if (valid == nullptr) return depth;
  }
  if (valid == nullptr) {
    for (int64_t u = 0; u < width; ++u) line[u] = static_cast<Value>(load(depth[u]));
  } else {
    for (int64_t u = 0; u < width; ++u) {
      const Value value = static_cast<Value>(load(depth[u]));
      line[u] = valid[u] ? value : instead;
    }
  }
  return line;
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
      std::vector<Value> line(width);
      int64_t at = tasks.first_pixel(task);
      for (int64_t v = tasks.first_row(task); v < tasks.last_row(task); ++v, at += width) {
        const Value* row = read_row(z + at, kept ? kept + at : nullptr, kNaN<Value>, line.data(), width);
        write_points(to + 3 * at, row, columns.data(), camera.row(v), width);
      }
    });
  });
  return points;
}

// What the pixels of some rows add to the gradient of the intrinsics, without the factors -1/fx and -1/fy.
struct IntrinsicsSums {
  double fx = 0, cx = 0, fy = 0, cy = 0;
};

template <class Value>
void clear_invalid(Value* __restrict values, const uint8_t* __restrict valid, int64_t width) {
  for (int64_t u = 0; u < width; ++u) values[u] = valid[u] ? values[u] : Value{0};
}

// What a row makes of the gradient of its points, coordinate by coordinate; all (width,). What is not valid is 0.
template <class Element, class Value>
void write_grad_depth(Element* __restrict grad_depth, const Value* __restrict x, const Value* __restrict y,
                      const Value* __restrict z, const Value* __restrict columns, Value row, int64_t width) {
  for (int64_t u = 0; u < width; ++u) {
    grad_depth[u] = store_as(static_cast<Accumulator<Element>>(columns[u] * x[u] + row * y[u] + z[u]), Element{});
  }
}

template <class Value>
void add_row(IntrinsicsSums& sum, const Value* __restrict x, const Value* __restrict y, const Value* __restrict depth,
             const Value* __restrict columns, Value row, int64_t width) {
  double fx[kLanes] = {}, cx[kLanes] = {}, cy[kLanes] = {};
  const auto add = [&](int64_t u, int lane) {
    const double wide = depth[u];
    const double x_term = x[u] * wide;
    fx[lane] += columns[u] * x_term;
    cx[lane] += x_term;
    cy[lane] += y[u] * wide;
  };
  int64_t u = 0;
  for (; u + kLanes <= width; u += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) add(u + lane, lane);
  }
  for (; u < width; ++u) add(u, 0);
  const double y_sum = sum_lanes(cy);
  sum.fx += sum_lanes(fx);
  sum.cx += sum_lanes(cx);
  sum.fy += row * y_sum;
  sum.cy += y_sum;
}

std::tuple<Tensor, Tensor> backproject_backward(Tensor grad_points, Tensor depth, Tensor intrinsics,
                                                std::optional<Tensor> valid, bool need_intrinsics) {
  const int64_t images = depth.size(0), height = depth.size(1), width = depth.size(2);
  Tensor grad_depth = make({images, height, width}, depth.scalar_type());
  Tensor grad_intrinsics = make({need_intrinsics ? images : 0, 3, 3}, intrinsics.scalar_type());
  const uint8_t* kept = valid_data(valid);  // (images, height, width)
  const Tasks tasks(images, height, width);
  dispatch_depth("backproject_backward", depth, intrinsics, [&]<class Element, class Value>() {
    const Value* from = grad_points.const_data_ptr<Value>();  // (images, height, width, 3)
    const Element* z = depth.const_data_ptr<Element>();  // (images, height, width)
    const Value* matrices = intrinsics.const_data_ptr<Value>();  // (images, 3, 3)
    Element* to = grad_depth.mutable_data_ptr<Element>();  // (images, height, width)
    Value* to_matrices = grad_intrinsics.mutable_data_ptr<Value>();  // (images, 3, 3)
    std::vector<IntrinsicsSums> sums(tasks.count);
    parallel_tasks(tasks.count, [&](int64_t task) {
      const Camera<Value> camera(matrices + 9 * tasks.image(task));
      const std::vector<Value> columns = camera.columns(width);
      std::vector<Value> lines(4 * width);
      Value *x = lines.data(), *y = x + width, *z_line = y + width, *line = z_line + width;
      IntrinsicsSums sum;
      int64_t at = tasks.first_pixel(task);
      for (int64_t v = tasks.first_row(task); v < tasks.last_row(task); ++v, at += width) {
        const Value row = camera.row(v);
        const uint8_t* use = kept ? kept + at : nullptr;
        read_points(x, y, z_line, from + 3 * at, width);
        if (use) {
          for (Value* coordinate : {x, y, z_line}) clear_invalid(coordinate, use, width);
        }
        write_grad_depth(to + at, x, y, z_line, columns.data(), row, width);
        if (!need_intrinsics) continue;
        const Value* depth_row = read_row(z + at, use, Value{0}, line, width);
        add_row(sum, x, y, depth_row, columns.data(), row, width);
      }
      sums[task] = sum;
    });
    for (int64_t image = 0; need_intrinsics && image < images; ++image) {
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
