// Loss and gradient of hybrid normalisation of one image on the CPU; `hybrid_norm` and `crop_ssi` are made of it.
//
// The edges of all levels together cut the target's range (or, for spatial contexts, the image) into disjoint atoms, and
// every context is a union of atoms: segments (1, 2, 4) make 4 atoms, 16 spatial ones. The valid pixels are brought into
// the order of their atoms once; after that everything is a stream over contiguous numbers:
//   medians    a histogram per atom over 2048 equal stretches of the map's range, then an exact selection among the few
//              values that share a stretch with the median;
//   spreads    sums of |x - center|;
//   gradient   from sums of signs, written back to where each pixel came from.
// Numbers are kept in the map's precision and all arithmetic on them is in double, so a sign is wrong only where the
// reference in float64 would be wrong too.
//
// Gradient, per context with n pixels, r_i = (p_i - c) / s, sigma_i = weight * sign(r_i - N(t_i)), A = sum sigma_i,
// Q = sum sigma_i (p_i - c), e_j = sign(p_j - c):
//   dL/dp_j = sigma_j / s - Q e_j / (s^2 n) + [j is the center] (-A / s + Q sum_k e_k / (s^2 n)).
#pragma once

#include "selection_cpu.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

namespace distilldepth {

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
  const V zero = x - x;
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
    int64_t count = 0;
    bool finite = true;
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
    double deviation = 0, target_deviation = 0, loss = 0, signs = 0, moment = 0, center_signs = 0;
  };

  template <class P, class E>
  Extremes find_extremes(const P* prediction, const E* target, const uint8_t* valid, int64_t pixels) {
    const int64_t tasks = (pixels + kPiece - 1) / kPiece;
    std::vector<Extremes> parts(tasks);
    constexpr T kInfinity = std::numeric_limits<T>::infinity();
    run_tasks(parallel_, tasks, [&](int64_t task) {
      const int64_t begin = task * kPiece, end = std::min(begin + kPiece, pixels);
      T low[2][kLanes], high[2][kLanes], rest[kLanes];
      int32_t count[kLanes];
      for (int lane = 0; lane < kLanes; ++lane) {
        low[0][lane] = low[1][lane] = kInfinity;
        high[0][lane] = high[1][lane] = -kInfinity;
        rest[lane] = 0;
        count[lane] = 0;
      }
      const auto look = [&](int64_t i, int lane) {
        const bool use = valid == nullptr || valid[i];
        const T p = static_cast<T>(load(prediction[i])), t = static_cast<T>(load(target[i]));
        const T p_low = use ? p : kInfinity, p_high = use ? p : -kInfinity;
        const T t_low = use ? t : kInfinity, t_high = use ? t : -kInfinity;
        low[0][lane] = p_low < low[0][lane] ? p_low : low[0][lane];
        high[0][lane] = p_high > high[0][lane] ? p_high : high[0][lane];
        low[1][lane] = t_low < low[1][lane] ? t_low : low[1][lane];
        high[1][lane] = t_high > high[1][lane] ? t_high : high[1][lane];
        // x - x is 0 for what is finite and NaN for the rest, which comparisons would pass over.
        const T zero = use ? (p - p) + (t - t) : T{0};
        rest[lane] += zero;
        count[lane] += use;
      };
      int64_t i = begin;
      for (; i + kLanes <= end; i += kLanes) {
        for (int lane = 0; lane < kLanes; ++lane) look(i + lane, lane);
      }
      for (; i < end; ++i) look(i, 0);
      Extremes& part = parts[task];
      part.prediction_low = *std::min_element(low[0], low[0] + kLanes);
      part.prediction_high = *std::max_element(high[0], high[0] + kLanes);
      part.target_low = *std::min_element(low[1], low[1] + kLanes);
      part.target_high = *std::max_element(high[1], high[1] + kLanes);
      part.count = std::accumulate(count, count + kLanes, int64_t{0});
      part.finite = sum_lanes(rest) == 0;
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
    target_.resize(pixels);
    int64_t kept = 0;
    for (int64_t i = 0; i < pixels; ++i) {
      target_[kept] = static_cast<T>(load(target[i]));
      kept += valid == nullptr || valid[i];
    }
    cut_pieces({kept});
    const std::vector<Selected<T>> found = select_ranks<T>(
        target_.data(), nullptr, pieces_, 1, extremes.target_low, extremes.target_high, requests, parallel_);
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

  // Copies the valid pixels into the order of their atoms; inside an atom they keep the image's order.
  template <class P, class E>
  void reorder(const P* prediction, const E* target, const uint8_t* valid, int64_t height, int64_t width) {
    const int64_t pixels = height * width, atoms = partition_.atoms;
    prediction_.resize(pixels);
    target_.resize(pixels);
    source_.resize(pixels);
    const int64_t tasks = (pixels + kPiece - 1) / kPiece;
    const bool by_place = options_.contexts == Contexts::kSpatial;
    // Which atom each pixel is in; `atoms` for those that are not valid.
    const auto find_atoms = [&](int64_t begin, int64_t count, int32_t* atom) {
      if (by_place) {
        int64_t y = begin / width, x = begin % width;
        for (int64_t i = 0; i < count; ++i) {
          atom[i] = row_atom_[y] + column_atom_[x];
          if (++x == width) x = 0, ++y;
        }
      } else {
        T values[kBlock];
        for (int64_t i = 0; i < count; ++i) values[i] = static_cast<T>(load(target[begin + i])), atom[i] = 0;
        for (const T edge : edges_) {
          for (int64_t i = 0; i < count; ++i) atom[i] += values[i] >= edge;
        }
      }
      if (valid != nullptr) {
        for (int64_t i = 0; i < count; ++i) atom[i] = valid[begin + i] ? atom[i] : static_cast<int32_t>(atoms);
      }
    };
    // Counts first, so that every task knows where to write.
    std::vector<int64_t> next(tasks * (atoms + 1), 0);
    run_tasks(parallel_, tasks, [&](int64_t task) {
      int64_t* counts = next.data() + task * (atoms + 1);
      int32_t atom[kBlock];
      for (int64_t begin = task * kPiece, end = std::min(begin + kPiece, pixels); begin < end; begin += kBlock) {
        const int64_t count = std::min(kBlock, end - begin);
        find_atoms(begin, count, atom);
        for (int64_t i = 0; i < count; ++i) ++counts[atom[i]];
      }
    });
    atom_counts_.assign(atoms, 0);
    int64_t place = 0;
    for (int64_t atom = 0; atom <= atoms; ++atom) {
      for (int64_t task = 0; task < tasks; ++task) {
        int64_t& here = next[task * (atoms + 1) + atom];
        const int64_t count = here;
        here = place;
        place += count;
        if (atom < atoms) atom_counts_[atom] += count;
      }
    }
    run_tasks(parallel_, tasks, [&](int64_t task) {
      int64_t* places = next.data() + task * (atoms + 1);
      int32_t atom[kBlock];
      for (int64_t begin = task * kPiece, end = std::min(begin + kPiece, pixels); begin < end; begin += kBlock) {
        const int64_t count = std::min(kBlock, end - begin);
        find_atoms(begin, count, atom);
        for (int64_t i = 0; i < count; ++i) {
          const int64_t to = places[atom[i]]++;
          // + 0 makes one zero of the two.
          prediction_[to] = static_cast<T>(load(prediction[begin + i])) + T{0};
          target_[to] = static_cast<T>(load(target[begin + i])) + T{0};
          source_[to] = static_cast<uint32_t>(begin + i);
        }
      }
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
        prediction_.data(), source_.data(), pieces_, partition_.atoms, extremes.prediction_low,
        extremes.prediction_high, present, parallel_);
    const auto target_centers = select_ranks<T>(
        target_.data(), nullptr, pieces_, partition_.atoms, extremes.target_low, extremes.target_high, present,
        parallel_);
    std::vector<Statistics> statistics(requests.size());
    for (size_t i = 0; i < present.size(); ++i) {
      Statistics& context = statistics[numbers[i]];
      context.center = centers[i].value;
      context.center_pixel = centers[i].first;
      context.target_center = target_centers[i].value;
      for (const int64_t atom : present[i].atoms) context.count += atom_counts_[atom];
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

    sweep([&](const Statistics& context, Sums& sum, int64_t begin, int64_t block) {
      const T *p = prediction_.data() + begin, *t = target_.data() + begin;
      const double scale = 1 / context.spread, target_scale = 1 / context.target_spread;
      Pack loss = {}, signs = {}, moment = {}, center_signs = {};
      Sums rest;
      each_pack(block, [&]<class V>(int64_t i) {
        const V d = load_pack<V>(p + i) - context.center;
        const V difference = d * scale - (load_pack<V>(t + i) - context.target_center) * target_scale;
        const V sign = sign_of(difference);
        if constexpr (std::is_same_v<V, double>) {
          rest.loss += magnitude(difference), rest.signs += sign, rest.moment += sign * d;
          rest.center_signs += sign_of(d);
        } else {
          loss += magnitude(difference), signs += sign, moment += sign * d, center_signs += sign_of(d);
        }
      });
      sum.loss += total(loss) + rest.loss;
      sum.signs += total(signs) + rest.signs;
      sum.moment += total(moment) + rest.moment;
      sum.center_signs += total(center_signs) + rest.center_signs;
    });
    double loss = 0;
    for (int64_t number = 0; number < count; ++number) {
      for (int64_t level = 0; level < levels; ++level) {
        Statistics& context = context_at(level, pieces_[number].atom);
        const Sums& sum = sums[number * levels + level];
        loss += sum.loss;
        context.signs += sum.signs;
        context.moment += sum.moment;
        context.center_signs += sum.center_signs;
      }
    }
    if (gradient != nullptr) {
      write_gradient(statistics, context_at, weight / static_cast<double>(levels), gradient);
    }
    return loss / static_cast<double>(levels);
  }

  template <class ContextAt>
  void write_gradient(
      const std::vector<Statistics>& statistics, const ContextAt& context_at, double weight, T* gradient) {
    const int64_t levels = static_cast<int64_t>(partition_.parts.size());
    run_tasks(parallel_, static_cast<int64_t>(pieces_.size()), [&](int64_t number) {
      const Piece& piece = pieces_[number];
      double slopes[kBlock];
      for (int64_t begin = piece.begin; begin < piece.end; begin += kBlock) {
        const int64_t block = std::min(kBlock, piece.end - begin);
        const T *p = prediction_.data() + begin, *t = target_.data() + begin;
        std::fill(slopes, slopes + block, 0.0);
        for (int64_t level = 0; level < levels; ++level) {
          const Statistics& context = context_at(level, piece.atom);
          const double scale = 1 / context.spread, target_scale = 1 / context.target_spread;
          const double pull = context.moment * scale * scale / static_cast<double>(context.count);
          each_pack(block, [&]<class V>(int64_t i) {
            const V d = load_pack<V>(p + i) - context.center;
            const V difference = d * scale - (load_pack<V>(t + i) - context.target_center) * target_scale;
            const V slope = sign_of(difference) * scale - sign_of(d) * pull;
            if constexpr (std::is_same_v<V, double>) {
              slopes[i] += slope;
            } else {
              using Loose __attribute__((vector_size(64), aligned(8))) = double;
              *reinterpret_cast<Loose*>(slopes + i) += slope;
            }
          });
        }
        const uint32_t* source = source_.data() + begin;
        for (int64_t i = 0; i < block; ++i) gradient[source[i]] = static_cast<T>(slopes[i] * weight);
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
  std::vector<T> prediction_, target_;
  std::vector<uint32_t> source_;
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
