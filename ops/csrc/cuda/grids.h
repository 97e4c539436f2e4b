// How a problem is divided into grids and blocks.
#pragma once

#include <algorithm>
#include <cstdint>

#include "problem.h"

namespace salience_detr {
namespace gpu {

// What a grid can have.
constexpr int64_t kMostImages = 65535;  // more take several launches
constexpr int64_t kMostHeads = 65535;
constexpr int64_t kMostQueries = (int64_t{1} << 31) - 1;

constexpr int kMostThreads = 128;  // of a block
constexpr int kFewestThreads = 32;
// Blocks for each multiprocessor, below which smaller ones spread the work better.
constexpr int64_t kEnoughBlocks = 8;

inline int64_t blocks(int64_t queries, int threads, int lanes) {
  const int64_t items = threads / lanes;
  return (queries + items - 1) / items;
}

// Threads of a block: as many as possible, as long as all multiprocessors have enough blocks.
template <typename T, typename O>
int block_size(const Problem<T, O>& p, int lanes, int64_t multiprocessors) {
  const int64_t slices = p.batch * p.heads, enough = kEnoughBlocks * multiprocessors;
  int threads = kMostThreads;
  while (threads > kFewestThreads && slices * blocks(p.queries, threads, lanes) < enough) threads /= 2;
  return threads;
}

// Calls run(problem, (blocks, heads, images), threads) for the images that one grid can have at a time. The blocks of
// an image and head follow each other, so those that run together read one small slice of the value.
template <typename T, typename O, typename Run>
void for_grids(Problem<T, O> p, int lanes, int64_t multiprocessors, Run run) {
  const int threads = block_size(p, lanes, multiprocessors);
  for (p.first_image = 0; p.first_image < p.batch; p.first_image += kMostImages) {
    const int64_t images = std::min(p.batch - p.first_image, kMostImages);
    run(p, dim3{static_cast<unsigned>(blocks(p.queries, threads, lanes)), static_cast<unsigned>(p.heads),
                static_cast<unsigned>(images)},
        threads);
  }
}

}  // namespace gpu
}  // namespace salience_detr
