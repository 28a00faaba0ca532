#include <algorithm>
#include <cstdint>
#include <map>
#include <unordered_map>
#include <utility>

#include "tests/simt/nccl_transport.h"

namespace {

// The ranks of a communicator. They are numbered in the order of their keys once all have joined.
struct Members {
  std::vector<std::pair<int, int>> keys;  // (key, place of joining)
  // By place_in_mail.
  std::unordered_map<uint64_t, std::vector<std::vector<std::byte>>> mail;
  // By (how many splits the members made before, colour).
  std::map<std::pair<int, int>, std::weak_ptr<Members>> children;
};

uint64_t place_in_mail(int sender, int receiver) {
  return static_cast<uint64_t>(sender) << 32 | static_cast<uint64_t>(receiver);
}

class LocalDelivery final : public Delivery {
 public:
  LocalDelivery(std::shared_ptr<Members> members, int rank, std::vector<Message> given)
      : members_(std::move(members)), rank_(rank) {
    messages = std::move(given);
    for (const Message& m : messages) {
      if (m.sends) members_->mail[place_in_mail(rank_, m.peer)].push_back(m.bytes);
    }
  }

  bool has_ended() override {
    for (; arrived_ < messages.size(); ++arrived_) {
      Message& m = messages[arrived_];
      if (m.sends) continue;
      const auto waiting = members_->mail.find(place_in_mail(m.peer, rank_));
      if (waiting == members_->mail.end()) return false;
      m.bytes = std::move(waiting->second.front());
      waiting->second.erase(waiting->second.begin());
      if (waiting->second.empty()) members_->mail.erase(waiting);
    }
    return true;
  }

 private:
  std::shared_ptr<Members> members_;
  int rank_;
  size_t arrived_ = 0;
};

class LocalComm final : public EmulatedComm {
 public:
  LocalComm(std::shared_ptr<Members> members, int key) : members_(std::move(members)) {
    place_ = static_cast<int>(members_->keys.size());
    members_->keys.emplace_back(key, place_);
  }

  int rank() const override {
    return static_cast<int>(std::ranges::count_if(members_->keys, [&](const auto& other) {
      return other < members_->keys[static_cast<size_t>(place_)];
    }));
  }
  int size() const override { return static_cast<int>(members_->keys.size()); }
  std::unique_ptr<Delivery> deliver(std::vector<Message> messages) override {
    return std::make_unique<LocalDelivery>(members_, rank(), std::move(messages));
  }
  std::unique_ptr<EmulatedComm> split(int colour, int key) override {
    std::weak_ptr<Members>& known = members_->children[{splits_++, colour}];
    auto members = known.lock();
    if (!members) known = members = std::make_shared<Members>();
    return std::make_unique<LocalComm>(std::move(members), key);
  }
  bool all_ranks_live() const override { return true; }

 private:
  std::shared_ptr<Members> members_;
  int place_ = 0;
  int splits_ = 0;
};

}  // namespace

std::unique_ptr<EmulatedComm> make_local_comm(int ranks, int rank) {
  static std::weak_ptr<Members> world;  // the one that is being joined
  auto members = world.lock();
  if (!members || static_cast<int>(members->keys.size()) == ranks) {
    world = members = std::make_shared<Members>();
  }
  return std::make_unique<LocalComm>(std::move(members), rank);
}
