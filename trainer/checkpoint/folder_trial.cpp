#include "trainer/checkpoint/folder_trial.h"

#include <fmt/format.h>

#include <functional>
#include <iterator>
#include <limits>
#include <span>
#include <string_view>
#include <system_error>

#include "kernels/runtime/check.h"
#include "parallel/distributed_context.h"
#include "parallel/rank_reduction.h"
#include "trainer/checkpoint/checkpoint_folders.h"
#include "trainer/checkpoint/shard.h"
#include "trainer/files/durable_file.h"
#include "trainer/files/file_io.h"
#include "trainer/files/folders.h"

namespace switchyard {
namespace {

namespace fs = std::filesystem;

int64_t free_bytes_of(const fs::path& folder) {
  const fs::space_info space = fs::space(folder);
  // Some file systems do not know their size.
  if (space.capacity == 0) return std::numeric_limits<int64_t>::max();
  return static_cast<int64_t>(space.available);
}

void write_and_flush(const fs::path& path) {
  OutputFile file(path);
  file.write(std::as_bytes(std::span(std::string_view("trial"))));
  file.close();
  sync_file(path);
}

}  // namespace

DiskRoom try_folder_of_checkpoints(Communicator& world, const fs::path& folder,
                                   const CheckpointTensors& tensors) {
  fs::path trial = folder / "step_trial";
  trial += kTemporarySuffix;  // so that it is removed if this process is killed
  DiskRoom room;
  const auto together = [&](const std::function<void()>& body) {
    run_collectively(world, [&] {
      try {
        body();
      } catch (const std::exception& error) {
        fail(
            "checkpoints cannot be written: {}; let run.dir be a folder that all ranks share and "
            "may write to",
            error.what());
      }
    });
  };
  together([&] {
    if (world.rank() != 0) return;
    make_folder(trial);
    room.checkpoints = std::ssize(checkpoints_in(folder));
    room.free_bytes = free_bytes_of(folder);
  });
  try {
    together([&] { write_and_flush(trial / shard_name(world.rank())); });
  } catch (const CollectiveError&) {
    std::error_code ignored;
    if (world.rank() == 0) fs::remove_all(trial, ignored);
    throw;
  }
  together([&] {
    if (world.rank() == 0) remove_checkpoint(trial);
  });
  room.checkpoint_bytes = shard_bytes(tensors.owned);
  if (world.rank() == 0) room.checkpoint_bytes += shard_bytes(tensors.replicated);
  // The first rank alone has the other two figures.
  Stream stream;
  RankReduction reduction(world);
  reduction.sum(room.checkpoint_bytes);
  reduction.max(room.free_bytes);
  reduction.max(room.checkpoints);
  reduction.run(stream);
  return room;
}

}  // namespace switchyard
