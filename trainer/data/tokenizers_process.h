#pragma once

#include <sys/types.h>

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace switchyard {

// Runs Hugging Face's Python package `tokenizers` in a process of its own. The library has no
// interface for C++. As a process, it needs nothing when this program is built or linked, has
// neither signal handlers nor threads in this one, and one process per thread uses all cores
// without Python's lock. It ends when its object is destroyed, and when this process ends in any
// way. One thread at a time may use it.
class TokenizersProcess {
 public:
  // Starts the first `python3` of PATH. It finds the package in the folder where scripts/setup.sh
  // installs it, or among its own. Throws Error if it is missing or too old, or if the library
  // refuses the bytes of the tokenizer.json `path`.
  TokenizersProcess(std::string path, std::string_view tokenizer_json,
                    const std::string& end_of_document);
  ~TokenizersProcess();
  TokenizersProcess(const TokenizersProcess&) = delete;
  TokenizersProcess& operator=(const TokenizersProcess&) = delete;

  // One more than the greatest id, and the id of the token `end_of_document`, -1 if there is none.
  int64_t vocab_size() const { return vocab_size_; }
  int64_t end_of_document() const { return end_of_document_; }

  // The ids of tokenizers.Tokenizer.encode(text, add_special_tokens=False), never truncated or
  // padded. The text is UTF-8.
  std::vector<int32_t> encode(std::string_view text);
  // The text of tokenizers.Tokenizer.decode(ids, skip_special_tokens=False).
  std::string decode(std::span<const int32_t> ids);

 private:
  void start(const std::string& end_of_document);
  void stop();
  std::string request(char what, std::string_view payload);
  void send(std::string_view bytes);
  std::string receive(size_t count);
  [[noreturn]] void fail_because_it_ended();

  std::string path_;  // for messages
  pid_t process_ = -1;
  int socket_ = -1;
  int64_t vocab_size_ = 0, end_of_document_ = -1;
};

}  // namespace switchyard
