// Loss and gradient of hybrid normalisation of one image on the CPU; `hybrid_norm` and `crop_ssi` are made of it.
//
// The edges of all levels together cut the target's range (or, for spatial contexts, the image) into disjoint atoms, and
// every context is a union of atoms: segments (1, 2, 4) make 4 atoms, 16 spatial ones. The valid pixels are brought into
// the order of their atoms once; after that everything is a stream over contiguous numbers:
//   medians    a histogram per atom over 2048 equal stretches of the map's range, then an exact selection among the few
//              values that share a stretch with the median;
//   spreads    sums of |x - center|;
//   loss       together with the first part of the gradient, which takes the place of the targets;
//   gradient   its second part needs sums over whole contexts; then it is written back to where each pixel came from.
// Numbers are kept in the map's precision and all arithmetic that decides a sign is in double, so a sign is wrong only
// where the reference in float64 would be wrong too.
//
// Gradient, per context with n pixels, r_i = (p_i - c) / s, sigma_i = weight * sign(r_i - N(t_i)), A = sum sigma_i,
// Q = sum sigma_i (p_i - c), e_j = sign(p_j - c):
//   dL/dp_j = sigma_j / s - Q e_j / (s^2 n) + [j is the center] (-A / s + Q sum_k e_k / (s^2 n)).
#pragma once

#include "selection_cpu.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <numeric>
#include <vector>

namespace distilldepth {

// Independent walks through one task of reordering.
inline constexpr int64_t kStrands = 4;

enum class Contexts { kRange = 0, kQuantile = 1, kSpatial = 2 };

struct NormaliseOptions {
  std::vector<int64_t> segments;
  Contexts contexts;
  double spread_eps;
};

// Eight doubles, or one where a piece ends; the same source serves both.
using Pack = double __attribute__((vector_size(64)));
inline constexpr int kPack = 8;

template <class V, class T>
V load_pack(const T* values) {
  if constexpr (std::is_same_v<V, double>) {
    return static_cast<double>(*values);
  } else {
    using Narrow __attribute__((vector_size(kPack * sizeof(T)), aligned(alignof(T)))) = T;
    return __builtin_convertvector(*reinterpret_cast<const Narrow*>(values), Pack);
  }
}

template <class V>
V magnitude(V x) {
  return x < 0.0 ? -x : x;
}

template <class V>
V sign_of(V x) {
  const V zero{};
  return x > 0.0 ? zero + 1.0 : (x < 0.0 ? zero - 1.0 : zero);
}

inline double total(double x) { return x; }
inline double total(Pack x) { return ((x[0] + x[4]) + (x[2] + x[6])) + ((x[1] + x[5]) + (x[3] + x[7])); }

// Calls f.operator()<Pack>(i) for whole packs of [0, count) and f.operator()<double>(i) for the rest.
template <class F>
void each_pack(int64_t count, const F& f) {
  int64_t i = 0;
  for (; i + kPack <= count; i += kPack) f.template operator()<Pack>(i);
  for (; i < count; ++i) f.template operator()<double>(i);
}

// How the atoms make up the contexts of every level.
struct Partition {
  int64_t atoms = 1;
  std::vector<int64_t> parts;                    // contexts of each level
  std::vector<std::vector<int64_t>> context_of;  // [level][atom]

  std::vector<Request> lower_medians(const std::vector<int64_t>& atom_counts) const {
    std::vector<Request> requests;
    for (size_t level = 0; level < parts.size(); ++level) {
      std::vector<Request> contexts(parts[level], Request{{}, 0});
      for (int64_t atom = 0; atom < atoms; ++atom) {
        if (atom_counts[atom] == 0) continue;
        contexts[context_of[level][atom]].atoms.push_back(atom);
        contexts[context_of[level][atom]].rank += atom_counts[atom];
      }
      for (Request& context : contexts) context.rank = std::max<int64_t>(context.rank - 1, 0) / 2;
      requests.insert(requests.end(), contexts.begin(), contexts.end());
    }
    return requests;
  }
};

// Which stretch of [0, size) with edges floor(size * k / parts), for every level's parts together, a coordinate is in.
struct GridAxis {
  std::vector<int64_t> edges;  // ascending, without 0 and size

  GridAxis(int64_t size, const std::vector<int64_t>& segments) {
    for (const int64_t parts : segments) {
      for (int64_t k = 1; k < parts; ++k) edges.push_back(size * k / parts);
    }
    std::sort(edges.begin(), edges.end());
    edges.erase(std::unique(edges.begin(), edges.end()), edges.end());
  }
  int64_t atoms() const { return static_cast<int64_t>(edges.size()) + 1; }
  int64_t atom_of(int64_t coordinate) const {
    return std::upper_bound(edges.begin(), edges.end(), coordinate) - edges.begin();
  }
  // Context of an atom on a level: all coordinates of the atom have the same.
  int64_t context_of(int64_t atom, int64_t size, int64_t parts) const {
    const int64_t first = atom == 0 ? 0 : edges[atom - 1];
    int64_t context = 0;
    for (int64_t k = 1; k < parts; ++k) context += first >= size * k / parts;
    return context;
  }
};

// Smallest and largest of many values.
template <class T>
class Span {
 public:
  explicit Span(T first) {
    std::fill_n(low_, kWide, first);
    std::fill_n(high_, kWide, first);
  }
  void add(const T* __restrict values, int64_t count) {
    int64_t i = 0;
    for (; i + kWide <= count; i += kWide) {
      for (int lane = 0; lane < kWide; ++lane) look(values[i + lane], lane);
    }
    for (; i < count; ++i) look(values[i], 0);
  }
  T lowest() const {
    return fold_lanes(low_, [](T a, T b) { return std::min(a, b); });
  }
  T highest() const {
    return fold_lanes(high_, [](T a, T b) { return std::max(a, b); });
  }
  bool finite() const { return sum_lanes(rest_) == 0; }

 private:
  // So many that the compiler makes vector code of the loop over them instead of unrolling it.
  static constexpr int kWide = 64;

  void look(T value, int lane) {
    low_[lane] = value < low_[lane] ? value : low_[lane];
    high_[lane] = value > high_[lane] ? value : high_[lane];
    // x - x is 0 for what is finite and NaN for the rest, which comparisons would pass over.
    rest_[lane] += value - value;
  }

  T low_[kWide], high_[kWide], rest_[kWide] = {};
};

inline int64_t count_valid(const uint8_t* valid, int64_t count) {
  int32_t kept = 0;
  for (int64_t i = 0; i < count; ++i) kept += valid[i] != 0 ? 1 : 0;
  return kept;
}

// atom[i] += whether values[i] is at or above an edge.
template <class T>
void pass_edge(int32_t* __restrict atom, const T* __restrict values, T edge, int64_t count) {
  for (int64_t i = 0; i < count; ++i) atom[i] += values[i] >= edge ? 1 : 0;
}

// Memory that nobody sets to zero first.
template <class T>
class Buffer {
 public:
  void hold(int64_t count) {
    if (count <= capacity_) return;
    at_.reset();
    at_ = std::make_unique_for_overwrite<T[]>(count);
    capacity_ = count;
  }
  T* data() { return at_.get(); }

 private:
  std::unique_ptr<T[]> at_;
  int64_t capacity_ = 0;
};

// One image at a time; the buffers are kept for the next.
template <class T>
class ImageNormaliser {
 public:
  ImageNormaliser(const NormaliseOptions& options, bool parallel) : options_(options), parallel_(parallel) {}

  // Whether the threads share one image's work.
  bool parallel() const { return parallel_; }

  // Sum over valid pixels of the pixel loss; NaN if a valid pixel is not finite. With `gradient` (height * width, T), the
  // derivative of `weight` times the sum is written there, 0 where not valid.
  // prediction, target: (height * width) of P and E; valid: as many bytes, or null for all.
  template <class P, class E>
  double run(
      const P* prediction, const E* target, const uint8_t* valid, int64_t height, int64_t width, double weight,
      T* gradient) {
    const int64_t pixels = height * width;
    STD_TORCH_CHECK(pixels <= std::numeric_limits<uint32_t>::max(), "hybrid_norm: images of 2^32 pixels or more");
    if (pixels == 0) return 0;
    Extremes extremes = find_extremes(prediction, target, valid, pixels);
    const bool all_valid = extremes.count == pixels;
    if (gradient != nullptr && !all_valid) std::fill(gradient, gradient + pixels, T{0});
    if (extremes.count == 0) return 0;
    if (!extremes.finite) {
      const T nan = std::numeric_limits<T>::quiet_NaN();
      if (gradient != nullptr) {
        for (int64_t i = 0; i < pixels; ++i) gradient[i] = valid == nullptr || valid[i] ? nan : T{0};
      }
      return nan;
    }
    if (options_.contexts == Contexts::kSpatial) {
      cut_space(height, width);
    } else {
      cut_range(target, valid, pixels, extremes);
    }
    reorder(prediction, target, all_valid ? nullptr : valid, height, width);
    return reduce(extremes, weight, gradient);
  }

 private:
  struct Extremes {
    T prediction_low, prediction_high, target_low, target_high;
    int64_t count;
    bool finite;
  };

  struct Statistics {
    double center = 0, spread = 0, target_center = 0, target_spread = 0;
    uint32_t center_pixel = 0;
    int64_t count = 0;
    double signs = 0, moment = 0;  // sums of sign(r - N(t)) and of that times (p - c)
    double center_signs = 0;       // sum of sign(p - c)
  };

  // Sums of one piece on one level.
  struct Sums {
    double deviation = 0, target_deviation = 0, loss = 0, signs = 0, moment = 0;
  };

  template <class P, class E>
  Extremes find_extremes(const P* prediction, const E* target, const uint8_t* valid, int64_t pixels) {
    const auto is_valid = [](uint8_t use) { return use != 0; };
    const int64_t first = valid == nullptr ? 0 : std::find_if(valid, valid + pixels, is_valid) - valid;
    if (first == pixels) return {0, 0, 0, 0, 0, true};
    // What is not valid is as good as a pixel that is.
    const T instead = static_cast<T>(load(prediction[first])), target_instead = static_cast<T>(load(target[first]));
    const int64_t tasks = (pixels + kPiece - 1) / kPiece;
    std::vector<Extremes> parts(tasks);
    run_tasks(parallel_, tasks, [&](int64_t task) {
      Span<T> predictions(instead), targets(target_instead);
      int64_t kept = 0;
      T buffer[kBlock];
      for (int64_t begin = task * kPiece, end = std::min(begin + kPiece, pixels); begin < end; begin += kBlock) {
        const int64_t count = std::min(kBlock, end - begin);
        const uint8_t* use = valid == nullptr ? nullptr : valid + begin;
        predictions.add(read_block(prediction + begin, use, instead, count, buffer), count);
        targets.add(read_block(target + begin, use, target_instead, count, buffer), count);
        kept += use == nullptr ? count : count_valid(use, count);
      }
      parts[task] = {
          predictions.lowest(), predictions.highest(), targets.lowest(), targets.highest(), kept,
          predictions.finite() && targets.finite()};
    });
    Extremes all = parts[0];
    for (int64_t task = 1; task < tasks; ++task) {
      all.prediction_low = std::min(all.prediction_low, parts[task].prediction_low);
      all.prediction_high = std::max(all.prediction_high, parts[task].prediction_high);
      all.target_low = std::min(all.target_low, parts[task].target_low);
      all.target_high = std::max(all.target_high, parts[task].target_high);
      all.count += parts[task].count;
      all.finite = all.finite && parts[task].finite;
    }
    return all;
  }

  // Atoms between the edges of all levels; the contexts of `range` and `quantile`.
  template <class E>
  void cut_range(const E* target, const uint8_t* valid, int64_t pixels, const Extremes& extremes) {
    std::vector<std::vector<T>> edges;
    for (const int64_t parts : options_.segments) edges.emplace_back(std::max<int64_t>(parts - 1, 0));
    if (options_.contexts == Contexts::kRange) {
      const double low = extremes.target_low, high = extremes.target_high;
      for (size_t level = 0; level < edges.size(); ++level) {
        const double parts = static_cast<double>(options_.segments[level]);
        for (size_t k = 0; k < edges[level].size(); ++k) {
          edges[level][k] = round_up(low + (high - low) * static_cast<double>(k + 1) / parts);
        }
      }
    } else {
      find_quantiles(target, valid, pixels, extremes, edges);
    }
    edges_.clear();
    for (const auto& level : edges) edges_.insert(edges_.end(), level.begin(), level.end());
    std::sort(edges_.begin(), edges_.end());
    edges_.erase(std::unique(edges_.begin(), edges_.end()), edges_.end());
    partition_.atoms = static_cast<int64_t>(edges_.size()) + 1;
    partition_.parts = options_.segments;
    partition_.context_of.assign(edges.size(), std::vector<int64_t>(partition_.atoms, 0));
    for (size_t level = 0; level < edges.size(); ++level) {
      for (int64_t atom = 1; atom < partition_.atoms; ++atom) {
        int64_t context = 0;
        for (const T edge : edges[level]) context += edge <= edges_[atom - 1];
        partition_.context_of[level][atom] = context;
      }
    }
  }

  // Quantiles k / parts of the valid targets, linear between neighbours.
  template <class E>
  void find_quantiles(
      const E* target, const uint8_t* valid, int64_t pixels, const Extremes& extremes,
      std::vector<std::vector<T>>& edges) {
    std::vector<Request> requests;
    std::vector<double> shares;
    for (const int64_t parts : options_.segments) {
      for (int64_t k = 1; k < parts; ++k) {
        const double position =
            static_cast<double>(extremes.count - 1) * static_cast<double>(k) / static_cast<double>(parts);
        requests.push_back({{0}, static_cast<int64_t>(std::floor(position))});
        requests.push_back({{0}, static_cast<int64_t>(std::ceil(position))});
        shares.push_back(position - std::floor(position));
      }
    }
    if (requests.empty()) return;
    cut_pieces({pixels});
    const std::vector<Selected<T>> found = select_ranks<T>(
        target, extremes.count == pixels ? nullptr : valid, nullptr, pieces_, 1, extremes.target_low,
        extremes.target_high, requests, parallel_);
    size_t number = 0;
    for (auto& level : edges) {
      for (T& edge : level) {
        const double below = found[2 * number].value, above = found[2 * number + 1].value;
        edge = round_up(below + (above - below) * shares[number]);
        ++number;
      }
    }
  }

  // target >= edge for a float target is target >= the edge rounded up to float, whatever the precision.
  static T round_up(double edge) {
    const T rounded = static_cast<T>(edge);
    return static_cast<double>(rounded) < edge ? std::nextafter(rounded, std::numeric_limits<T>::infinity()) : rounded;
  }

  // Atoms are the cells of the grid that the edges of all levels draw.
  void cut_space(int64_t height, int64_t width) {
    const GridAxis rows(height, options_.segments), columns(width, options_.segments);
    row_atom_.resize(height);
    column_atom_.resize(width);
    for (int64_t y = 0; y < height; ++y) row_atom_[y] = static_cast<int32_t>(rows.atom_of(y) * columns.atoms());
    for (int64_t x = 0; x < width; ++x) column_atom_[x] = static_cast<int32_t>(columns.atom_of(x));
    partition_.atoms = rows.atoms() * columns.atoms();
    partition_.parts.clear();
    partition_.context_of.clear();
    for (const int64_t parts : options_.segments) {
      std::vector<int64_t> context_of(partition_.atoms);
      for (int64_t atom = 0; atom < partition_.atoms; ++atom) {
        const int64_t row = rows.context_of(atom / columns.atoms(), height, parts);
        context_of[atom] = row * parts + columns.context_of(atom % columns.atoms(), width, parts);
      }
      partition_.parts.push_back(parts * parts);
      partition_.context_of.push_back(std::move(context_of));
    }
  }

  // Copies the valid pixels into the order of their atoms; inside an atom the order is that of the strands.
  template <class P, class E>
  void reorder(const P* prediction, const E* target, const uint8_t* valid, int64_t height, int64_t width) {
    const int64_t pixels = height * width, atoms = partition_.atoms;
    prediction_.hold(pixels);
    target_.hold(pixels);
    source_.hold(pixels);
    const int64_t tasks = (pixels + kPiece - 1) / kPiece;
    const bool by_place = options_.contexts == Contexts::kSpatial;
    // Which atom each pixel is in; `atoms` for those that are not valid.
    const auto find_atoms = [&](int64_t begin, int64_t count, int32_t* atom) {
      if (by_place) {
        for (int64_t i = 0; i < count;) {
          const int64_t y = (begin + i) / width, x = (begin + i) % width, run = std::min(width - x, count - i);
          for (int64_t k = 0; k < run; ++k) atom[i + k] = row_atom_[y] + column_atom_[x + k];
          i += run;
        }
      } else {
        T buffer[kBlock];
        const T* values = read_block<T>(target + begin, nullptr, T{0}, count, buffer);
        std::fill(atom, atom + count, 0);
        for (const T edge : edges_) pass_edge(atom, values, edge, count);
      }
      if (valid != nullptr) replace_invalid(atom, valid + begin, static_cast<int32_t>(atoms), count);
    };
    // Neighbours are often in one atom, and each must wait for the one before it to count: a task walks through four
    // strands in turn. f(strand, pixel, atom) for every pixel of a task.
    const auto walk = [&](int64_t task, const auto& f) {
      const int64_t first = task * kPiece, length = std::min(kPiece, pixels - first);
      const int64_t strand = length / kStrands;
      int32_t atom[kStrands][kBlock];
      for (int64_t done = 0; done < strand; done += kBlock) {
        const int64_t count = std::min(kBlock, strand - done);
        for (int64_t s = 0; s < kStrands; ++s) find_atoms(first + s * strand + done, count, atom[s]);
        for (int64_t i = 0; i < count; ++i) {
          for (int64_t s = 0; s < kStrands; ++s) f(s, first + s * strand + done + i, atom[s][i]);
        }
      }
      const int64_t rest = first + kStrands * strand;
      find_atoms(rest, first + length - rest, atom[0]);
      for (int64_t i = rest; i < first + length; ++i) f(kStrands - 1, i, atom[0][i - rest]);
    };
    // Counts first, so that every strand knows where to write.
    const int64_t stride = atoms + 1;
    std::vector<int64_t> next(tasks * kStrands * stride, 0);
    run_tasks(parallel_, tasks, [&](int64_t task) {
      int64_t* counts = next.data() + task * kStrands * stride;
      walk(task, [&](int64_t strand, int64_t, int32_t atom) { ++counts[strand * stride + atom]; });
    });
    atom_counts_.assign(atoms, 0);
    int64_t place = 0;
    for (int64_t atom = 0; atom <= atoms; ++atom) {
      for (int64_t strand = 0; strand < tasks * kStrands; ++strand) {
        int64_t& here = next[strand * stride + atom];
        const int64_t count = here;
        here = place;
        place += count;
        if (atom < atoms) atom_counts_[atom] += count;
      }
    }
    T *predictions = prediction_.data(), *targets = target_.data();
    uint32_t* sources = source_.data();
    run_tasks(parallel_, tasks, [&](int64_t task) {
      int64_t* places = next.data() + task * kStrands * stride;
      walk(task, [&](int64_t strand, int64_t pixel, int32_t atom) {
        const int64_t to = places[strand * stride + atom]++;
        // + 0 makes one zero of the two.
        predictions[to] = static_cast<T>(load(prediction[pixel])) + T{0};
        targets[to] = static_cast<T>(load(target[pixel])) + T{0};
        sources[to] = static_cast<uint32_t>(pixel);
      });
    });
    cut_pieces(atom_counts_);
  }

  void cut_pieces(const std::vector<int64_t>& atom_counts) {
    pieces_.clear();
    int64_t begin = 0;
    for (size_t atom = 0; atom < atom_counts.size(); ++atom) {
      const int64_t end = begin + atom_counts[atom];
      for (; begin < end; begin = pieces_.back().end) {
        pieces_.push_back({begin, std::min(begin + kPiece, end), static_cast<int64_t>(atom)});
      }
    }
  }

  double reduce(const Extremes& extremes, double weight, T* gradient) {
    const std::vector<Request> requests = partition_.lower_medians(atom_counts_);
    std::vector<Request> present;
    std::vector<int64_t> numbers;
    for (size_t r = 0; r < requests.size(); ++r) {
      if (requests[r].atoms.empty()) continue;
      present.push_back(requests[r]);
      numbers.push_back(static_cast<int64_t>(r));
    }
    const auto centers = select_ranks<T>(
        prediction_.data(), nullptr, source_.data(), pieces_, partition_.atoms, extremes.prediction_low,
        extremes.prediction_high, present, parallel_);
    const auto target_centers = select_ranks<T>(
        target_.data(), nullptr, nullptr, pieces_, partition_.atoms, extremes.target_low, extremes.target_high, present,
        parallel_);
    std::vector<Statistics> statistics(requests.size());
    for (size_t i = 0; i < present.size(); ++i) {
      Statistics& context = statistics[numbers[i]];
      context.center = centers[i].value;
      context.center_pixel = centers[i].first;
      context.target_center = target_centers[i].value;
      for (const int64_t atom : present[i].atoms) context.count += atom_counts_[atom];
      context.center_signs = static_cast<double>(context.count - 2 * centers[i].below - centers[i].equal);
    }

    const int64_t levels = static_cast<int64_t>(partition_.parts.size());
    std::vector<int64_t> first_context(levels, 0);
    for (int64_t level = 1; level < levels; ++level) {
      first_context[level] = first_context[level - 1] + partition_.parts[level - 1];
    }
    const auto context_at = [&](int64_t level, int64_t atom) -> Statistics& {
      return statistics[first_context[level] + partition_.context_of[level][atom]];
    };
    const int64_t count = static_cast<int64_t>(pieces_.size());
    std::vector<Sums> sums(count * levels);
    // f(piece, level, context, sums, begin, count) for every block.
    const auto sweep = [&](const auto& f) {
      run_tasks(parallel_, count, [&](int64_t number) {
        const Piece& piece = pieces_[number];
        for (int64_t begin = piece.begin; begin < piece.end; begin += kBlock) {
          const int64_t block = std::min(kBlock, piece.end - begin);
          for (int64_t level = 0; level < levels; ++level) {
            f(context_at(level, piece.atom), sums[number * levels + level], begin, block);
          }
        }
      });
    };
    sweep([&](const Statistics& context, Sums& sum, int64_t begin, int64_t block) {
      const T *p = prediction_.data() + begin, *t = target_.data() + begin;
      Pack deviation = {}, target_deviation = {};
      double rest = 0, target_rest = 0;
      each_pack(block, [&]<class V>(int64_t i) {
        const V d = magnitude(load_pack<V>(p + i) - context.center);
        const V td = magnitude(load_pack<V>(t + i) - context.target_center);
        if constexpr (std::is_same_v<V, double>) {
          rest += d, target_rest += td;
        } else {
          deviation += d, target_deviation += td;
        }
      });
      sum.deviation += total(deviation) + rest;
      sum.target_deviation += total(target_deviation) + target_rest;
    });
    for (int64_t number = 0; number < count; ++number) {
      for (int64_t level = 0; level < levels; ++level) {
        Statistics& context = context_at(level, pieces_[number].atom);
        context.spread += sums[number * levels + level].deviation;
        context.target_spread += sums[number * levels + level].target_deviation;
      }
    }
    for (Statistics& context : statistics) {
      const double n = static_cast<double>(std::max<int64_t>(context.count, 1));
      context.spread = context.spread / n + options_.spread_eps;
      context.target_spread = context.target_spread / n + options_.spread_eps;
    }

    const double share = weight / static_cast<double>(levels);
    run_tasks(parallel_, count, [&](int64_t number) {
      const Piece& piece = pieces_[number];
      alignas(64) double slopes[kBlock];
      for (int64_t begin = piece.begin; begin < piece.end; begin += kBlock) {
        const int64_t block = std::min(kBlock, piece.end - begin);
        const T* p = prediction_.data() + begin;
        T* t = target_.data() + begin;
        for (int64_t level = 0; level < levels; ++level) {
          const Statistics& context = context_at(level, piece.atom);
          Sums& sum = sums[number * levels + level];
          const double scale = 1 / context.spread, target_scale = 1 / context.target_spread;
          const double height = scale * share;
          const double center = context.center, target_center = context.target_center;
          const bool first = level == 0;
          Pack loss = {}, signs = {}, moment = {};
          Sums rest;
          each_pack(block, [&]<class V>(int64_t i) {
            const V d = load_pack<V>(p + i) - center;
            const V difference = d * scale - (load_pack<V>(t + i) - target_center) * target_scale;
            const V sign = sign_of(difference);
            V* slope = reinterpret_cast<V*>(slopes + i);
            *slope = sign * height + (first ? V{} : *slope);
            if constexpr (std::is_same_v<V, double>) {
              rest.loss += magnitude(difference), rest.signs += sign, rest.moment += sign * d;
            } else {
              loss += magnitude(difference), signs += sign, moment += sign * d;
            }
          });
          sum.loss += total(loss) + rest.loss;
          sum.signs += total(signs) + rest.signs;
          sum.moment += total(moment) + rest.moment;
        }
        // The targets of this block have done their service: their place keeps the first part of the gradient.
        if (gradient != nullptr) {
          for (int64_t i = 0; i < block; ++i) t[i] = static_cast<T>(slopes[i]);
        }
      }
    });
    double loss = 0;
    for (int64_t number = 0; number < count; ++number) {
      for (int64_t level = 0; level < levels; ++level) {
        Statistics& context = context_at(level, pieces_[number].atom);
        const Sums& sum = sums[number * levels + level];
        loss += sum.loss;
        context.signs += sum.signs;
        context.moment += sum.moment;
      }
    }
    if (gradient != nullptr) {
      write_gradient(statistics, context_at, share, gradient);
    }
    return loss / static_cast<double>(levels);
  }

  template <class ContextAt>
  void write_gradient(
      const std::vector<Statistics>& statistics, const ContextAt& context_at, double weight, T* gradient) {
    const int64_t levels = static_cast<int64_t>(partition_.parts.size());
    run_tasks(parallel_, static_cast<int64_t>(pieces_.size()), [&](int64_t number) {
      const Piece& piece = pieces_[number];
      for (int64_t begin = piece.begin; begin < piece.end; begin += kBlock) {
        const int64_t block = std::min(kBlock, piece.end - begin);
        const T* p = prediction_.data() + begin;
        T* slopes = target_.data() + begin;
        for (int64_t level = 0; level < levels; ++level) {
          const Statistics& context = context_at(level, piece.atom);
          const T center = static_cast<T>(context.center);
          const T pull = static_cast<T>(
              weight * context.moment / (context.spread * context.spread * static_cast<double>(context.count)));
          for (int64_t i = 0; i < block; ++i) {
            slopes[i] -= p[i] > center ? pull : (p[i] < center ? -pull : T{0});
          }
        }
        const uint32_t* source = source_.data() + begin;
        for (int64_t i = 0; i < block; ++i) gradient[source[i]] = slopes[i];
      }
    });
    for (const Statistics& context : statistics) {
      if (context.count == 0) continue;
      const double scale = 1 / context.spread;
      const double pull = context.moment * scale * scale / static_cast<double>(context.count);
      T& slope = gradient[context.center_pixel];
      slope = static_cast<T>(slope + weight * (pull * context.center_signs - context.signs * scale));
    }
  }

  NormaliseOptions options_;
  bool parallel_;
  Partition partition_;
  std::vector<T> edges_;  // of all levels, ascending
  std::vector<int32_t> row_atom_, column_atom_;
  Buffer<T> prediction_, target_;
  Buffer<uint32_t> source_;
  std::vector<int64_t> atom_counts_;
  std::vector<Piece> pieces_;
};

// Calls work(normaliser, image) for every image: whole images side by side as long as there are enough for all threads,
// then the threads share the pixels of one image after the other. `work` writes only what belongs to its image.
template <class T, class F>
void each_image(const NormaliseOptions& options, int64_t images, const F& work) {
  const int64_t threads = std::max<int64_t>(torch::stable::get_num_threads(), 1);
  const int64_t together = images - images % threads;
  std::atomic<int64_t> next{0};
  parallel_tasks(std::min(threads, together), [&](int64_t) {
    ImageNormaliser<T> normaliser(options, false);
    for (int64_t image; (image = next.fetch_add(1)) < together;) work(normaliser, image);
  });
  ImageNormaliser<T> normaliser(options, threads > 1);
  for (int64_t image = together; image < images; ++image) work(normaliser, image);
}

}  // namespace distilldepth
