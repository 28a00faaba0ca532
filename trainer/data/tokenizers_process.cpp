#include "trainer/data/tokenizers_process.h"

#include <fmt/format.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <utility>

#include "kernels/runtime/check.h"

namespace switchyard {
namespace {

// Requests are a letter, a length of 8 bytes and a payload: `l`oad a tokenizer.json, `e`ncode text,
// `d`ecode ids. Replies are the same: `=` a result, `!` an error, `?` no usable library.
constexpr char kProgram[] = R"python(
import os, select, socket, struct, sys, threading
from array import array

def end_with_the_program():  # in the midst of a long text, too
    ends = select.poll()
    ends.register(0, 0)
    ends.poll()  # returns when the other side is closed
    os._exit(0)

threading.Thread(target=end_with_the_program, daemon=True).start()

stream = socket.socket(fileno=0).makefile("rwb")
package_folder, end_of_document = sys.argv[1:]
sys.path = [package_folder, *filter(None, sys.path)]  # without the current folder
os.environ["TOKENIZERS_PARALLELISM"] = "false"  # there is a process per thread

def load(file):
    tokenizer = tokenizers.Tokenizer.from_buffer(file)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    ids = tokenizer.get_vocab(with_added_tokens=True).values()
    end = tokenizer.token_to_id(end_of_document)
    return tokenizer, array("q", [max(ids, default=-1) + 1, -1 if end is None else end]).tobytes()

def encode(tokenizer, text):
    encoding, = tokenizer.encode_batch_fast([text.decode()], add_special_tokens=False)
    return array("i", encoding.ids).tobytes()

def decode(tokenizer, ids):
    return tokenizer.decode(array("i", ids).tolist(), skip_special_tokens=False).encode()

try:
    import tokenizers
    if not hasattr(tokenizers.Tokenizer, "encode_batch_fast"):
        raise ImportError(f"version {tokenizers.__version__} is too old")
    missing = None
except Exception as error:
    missing = f"{sys.executable}: {error}"

tokenizer = None
while len(header := stream.read(9)) == 9:
    what, size = struct.unpack("=cQ", header)
    payload = stream.read(size)
    try:
        status = b"="
        if missing:
            status, result = b"?", missing.encode()
        elif what == b"l":
            tokenizer, result = load(payload)
        else:
            result = {b"e": encode, b"d": decode}[what](tokenizer, payload)
    except BaseException as error:  # a panic of the library is no Exception
        status, result = b"!", str(error).encode()
    stream.write(struct.pack("=cQ", status, len(result)))
    stream.write(result)
    stream.flush()
)python";

constexpr char kInstall[] =
    "run scripts/setup.sh, which installs it, or install it for the python3 that comes first in "
    "PATH: python3 -m pip install tokenizers";

// Where scripts/setup.sh installs the package.
std::string package_folder() {
  const char* data = std::getenv("XDG_DATA_HOME");
  const char* home = std::getenv("HOME");
  const std::filesystem::path base =
      data && *data ? std::filesystem::path(data)
                    : std::filesystem::path(home ? home : "/") / ".local" / "share";
  return base / "switchyard" / "python";
}

// The list of what posix_spawn does in the new process.
class SpawnActions {
 public:
  explicit SpawnActions(int socket) {
    posix_spawn_file_actions_init(&actions_);
    posix_spawn_file_actions_adddup2(&actions_, socket, STDIN_FILENO);
    posix_spawn_file_actions_adddup2(&actions_, STDERR_FILENO, STDOUT_FILENO);
    // It must hold no file of this process, whose locks would outlive it.
    posix_spawn_file_actions_addclosefrom_np(&actions_, STDERR_FILENO + 1);
    posix_spawnattr_init(&attributes_);
    // A group of its own, so that signals to this process's group, as by Ctrl-C, do not end it.
    posix_spawnattr_setflags(&attributes_, POSIX_SPAWN_SETPGROUP);
  }
  ~SpawnActions() {
    posix_spawnattr_destroy(&attributes_);
    posix_spawn_file_actions_destroy(&actions_);
  }
  SpawnActions(const SpawnActions&) = delete;
  SpawnActions& operator=(const SpawnActions&) = delete;

  // Returns errno, or 0.
  int spawn(pid_t& process, char* const* arguments) {
    return posix_spawnp(&process, arguments[0], &actions_, &attributes_, arguments, environ);
  }

 private:
  posix_spawn_file_actions_t actions_;
  posix_spawnattr_t attributes_;
};

std::string_view bytes_of(const auto& range) {
  return {reinterpret_cast<const char*>(range.data()), range.size() * sizeof(*range.data())};
}

}  // namespace

TokenizersProcess::TokenizersProcess(std::string path, std::string_view tokenizer_json,
                                     const std::string& end_of_document)
    : path_(std::move(path)) {
  try {
    start(end_of_document);
    const std::string reply = request('l', tokenizer_json);
    int64_t numbers[2];
    std::memcpy(numbers, reply.data(), sizeof(numbers));
    vocab_size_ = numbers[0];
    end_of_document_ = numbers[1];
  } catch (...) {
    stop();
    throw;
  }
}

TokenizersProcess::~TokenizersProcess() { stop(); }

void TokenizersProcess::start(const std::string& end_of_document) {
  int sockets[2];
  require(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sockets) == 0,
          "cannot make a socket pair: {}", std::strerror(errno));
  socket_ = sockets[0];
  std::string python = "python3", option = "-c", program = kProgram, folder = package_folder(),
              marker = end_of_document;
  char* const arguments[] = {python.data(), option.data(), program.data(),
                             folder.data(), marker.data(), nullptr};
  const int error = SpawnActions(sockets[1]).spawn(process_, arguments);
  ::close(sockets[1]);
  if (error == 0) return;
  process_ = -1;
  fail(
      "data.tokenizer.type huggingface needs Python and its package tokenizers, but python3 "
      "cannot be started: {}; {}",
      std::strerror(error), kInstall);
}

void TokenizersProcess::stop() {
  if (socket_ >= 0) ::close(socket_);  // the process ends when it reads the end of its input
  socket_ = -1;
  while (process_ > 0 && ::waitpid(process_, nullptr, 0) < 0 && errno == EINTR) {
  }
  process_ = -1;
}

std::vector<int32_t> TokenizersProcess::encode(std::string_view text) {
  const std::string reply = request('e', text);
  std::vector<int32_t> ids(reply.size() / sizeof(int32_t));
  if (!ids.empty()) std::memcpy(ids.data(), reply.data(), ids.size() * sizeof(int32_t));
  return ids;
}

std::string TokenizersProcess::decode(std::span<const int32_t> ids) {
  return request('d', bytes_of(ids));
}

std::string TokenizersProcess::request(char what, std::string_view payload) {
  const uint64_t size = payload.size();
  send({&what, 1});
  send(bytes_of(std::span(&size, 1)));
  send(payload);
  const char status = receive(1).front();
  uint64_t reply_size;
  std::memcpy(&reply_size, receive(sizeof(reply_size)).data(), sizeof(reply_size));
  std::string reply = receive(reply_size);
  require(status != '?',
          "data.tokenizer.type huggingface needs Python's package tokenizers, which cannot be "
          "used: {}; {}",
          reply, kInstall);
  require(status == '=', "{}: Python's package tokenizers reports: {}", path_, reply);
  return reply;
}

void TokenizersProcess::send(std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t sent = ::send(socket_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (sent < 0 && errno == EINTR) continue;
    if (sent < 0) fail_because_it_ended();
    bytes.remove_prefix(static_cast<size_t>(sent));
  }
}

std::string TokenizersProcess::receive(size_t count) {
  std::string bytes(count, '\0');
  for (size_t filled = 0; filled < count;) {
    const ssize_t received = ::recv(socket_, bytes.data() + filled, count - filled, 0);
    if (received < 0 && errno == EINTR) continue;
    if (received <= 0) fail_because_it_ended();
    filled += static_cast<size_t>(received);
  }
  return bytes;
}

void TokenizersProcess::fail_because_it_ended() {
  int status = 0;
  while (::waitpid(process_, &status, 0) < 0 && errno == EINTR) {
  }
  process_ = -1;
  if (WIFSIGNALED(status)) {
    fail(
        "the Python process that runs the package tokenizers was ended by signal {} ({}); if that "
        "is 9, its memory may have run out: cut long documents",
        WTERMSIG(status), ::strsignal(WTERMSIG(status)));
  }
  fail(
      "the Python process that runs the package tokenizers has ended with code {}; it says why "
      "above",
      WEXITSTATUS(status));
}

}  // namespace switchyard
