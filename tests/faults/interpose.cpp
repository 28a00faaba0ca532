// A library for LD_PRELOAD that disturbs a process at a chosen call on a file below a chosen
// folder: it ends or stops the process, lets the call fail, or cuts a write short. The program
// under test needs no code for it. campaign.py chooses the call. Environment variables:
//
//   FAULT_ROOT    the folder; calls on files elsewhere are not touched
//   FAULT_RANK    the rank that is disturbed; -1: all
//   FAULT_CALLS   kinds of calls that count, separated by commas; empty: all (kKinds)
//   FAULT_PATH    only calls on paths that contain this text count
//   FAULT_AT      which of these calls is disturbed, from 1
//   FAULT_SPAN    how many calls from there on are disturbed; 0: all
//   FAULT_ACTION  kill-before, kill-after, torn (half a write, then killed), short (half a write),
//                 ENOSPC, EIO, or signal-N (the process sends itself signal N before the call)
//   FAULT_LOG     a line is appended to this file for each disturbed call
//   FAULT_TRACE   a line is appended to this file for each call that counts, and at the end one
//                 with the number of MPI_Isend of floats
//   FAULT_NAN_AT  which MPI_Isend of floats gets a NaN as its first element, from 1

#include <dlfcn.h>
#include <fcntl.h>
#include <mpi.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <climits>
#include <csignal>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <string>
#include <string_view>

namespace {

constexpr std::array kKinds = {"open",     "write", "sync",   "rename", "truncate",
                               "allocate", "close", "unlink", "mkdir",  "link"};
enum Kind { kOpen, kWrite, kSync, kRename, kTruncate, kAllocate, kClose, kUnlink, kMkdir, kLink };

std::string text_of(const char* name) {
  const char* value = std::getenv(name);
  return value ? value : "";
}

long number_of(const char* name) { return std::atol(text_of(name).c_str()); }

bool is_chosen_rank() {
  const long chosen = number_of("FAULT_RANK");
  return chosen < 0 || chosen == number_of("OMPI_COMM_WORLD_RANK");
}

struct Plan {
  std::string root = text_of("FAULT_ROOT"), calls = text_of("FAULT_CALLS");
  std::string path = text_of("FAULT_PATH"), action = text_of("FAULT_ACTION");
  std::string log = text_of("FAULT_LOG"), trace = text_of("FAULT_TRACE");
  long at = number_of("FAULT_AT"), span = number_of("FAULT_SPAN");
  long nan_at = number_of("FAULT_NAN_AT");
  std::string rank = std::to_string(number_of("OMPI_COMM_WORLD_RANK"));
  bool chosen = is_chosen_rank();
};

const Plan& plan() {
  static const Plan& chosen = *new Plan;  // never destroyed: files are closed until the very end
  return chosen;
}

std::atomic<long> calls_so_far, sends_so_far;
std::array<std::atomic<bool>, 1 << 16> is_below_root;  // by file descriptor

// Whether the comma-separated list is empty or names the kind.
bool counts(const std::string& calls, Kind kind) {
  const std::string name = kKinds[kind];
  return calls.empty() || ("," + calls + ",").find("," + name + ",") != std::string::npos;
}

// Appends a line by system calls, which do not come here again.
void append(const std::string& file, const std::string& line) {
  if (file.empty()) return;
  const long descriptor =
      ::syscall(SYS_openat, AT_FDCWD, file.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0644);
  ::syscall(SYS_write, descriptor, line.data(), line.size());
  ::syscall(SYS_close, descriptor);
}

std::string path_of(int descriptor) {
  char path[PATH_MAX];
  const std::string link = "/proc/self/fd/" + std::to_string(descriptor);
  const ssize_t length = ::readlink(link.c_str(), path, sizeof path);
  return length < 0 ? std::string() : std::string(path, static_cast<size_t>(length));
}

std::string path_of(int folder, const char* name) {
  if (name[0] == '/') return name;
  char working[PATH_MAX];
  const std::string base = folder != AT_FDCWD                  ? path_of(folder)
                           : ::getcwd(working, sizeof working) ? std::string(working)
                                                               : std::string();
  return base + "/" + name;
}

bool below_root(std::string_view path) {
  return !plan().root.empty() && plan().chosen && path.starts_with(plan().root + "/");
}

bool tracked(int descriptor) {
  return descriptor >= 0 && descriptor < static_cast<int>(is_below_root.size()) &&
         is_below_root[static_cast<size_t>(descriptor)];
}

// Whether this call is to be disturbed.
bool is_due(Kind kind, const std::string& path) {
  const Plan& p = plan();
  if (!counts(p.calls, kind) || path.find(p.path) == std::string::npos) return false;
  const long call = ++calls_so_far;
  const std::string line = p.rank + " " + kKinds[kind] + " " + std::to_string(call) + " " + path;
  append(p.trace, line + "\n");
  const bool due = p.at > 0 && call >= p.at && (p.span == 0 || call < p.at + p.span);
  if (due) append(p.log, p.action + " " + line + "\n");
  return due;
}

__attribute__((destructor)) void report_sends() {
  if (plan().chosen && sends_so_far > 0) {
    append(plan().trace, plan().rank + " sends " + std::to_string(sends_so_far) + "\n");
  }
}

void end_process() { ::kill(::getpid(), SIGKILL); }

// What the kernel does with the pages of a file that it could not write: they are clean and lost,
// and the next fsync succeeds.
void lose_second_half(int descriptor) {
  struct stat status {};
  if (::fstat(descriptor, &status) != 0 || !S_ISREG(status.st_mode)) return;
  const std::string path = path_of(descriptor);
  const long writable = ::syscall(SYS_openat, AT_FDCWD, path.c_str(), O_WRONLY);
  const std::string zeros(static_cast<size_t>(status.st_size - status.st_size / 2), '\0');
  ::syscall(SYS_pwrite64, writable, zeros.data(), zeros.size(), status.st_size / 2);
  ::syscall(SYS_close, writable);
}

// Makes the call, or disturbs it.
//   body         the call itself
//   half         what "torn" and "short" do instead
//   before_fail  what a failure leaves behind
template <class Body, class Half, class BeforeFail>
auto disturb(Kind kind, const std::string& path, Body body, Half half, BeforeFail before_fail)
    -> decltype(body()) {
  if (!is_due(kind, path)) return body();
  const std::string& action = plan().action;
  if (action == "short") return half();
  if (action == "torn") half();
  if (action == "torn" || action == "kill-before") end_process();
  if (action == "ENOSPC" || action == "EIO") {
    before_fail();
    errno = action == "EIO" ? EIO : ENOSPC;
    return -1;
  }
  if (action.starts_with("signal-")) ::raise(std::atoi(action.c_str() + std::strlen("signal-")));
  const auto result = body();
  if (action == "kill-after") end_process();
  return result;
}

template <class Body>
auto disturb(Kind kind, const std::string& path, Body body) -> decltype(body()) {
  return disturb(kind, path, body, body, [] {});
}

template <class Function>
Function* next(const char* name) {
  return reinterpret_cast<Function*>(::dlsym(RTLD_NEXT, name));
}

int open_file(int folder, const char* name, int flags, mode_t mode) {
  static auto* const real = next<int(int, const char*, int, ...)>("openat");
  const auto body = [&] { return real(folder, name, flags, mode); };
  const std::string path = path_of(folder, name);
  if (!below_root(path)) return body();
  // Opening to read is no change, and a program may always find that a file cannot be read.
  const bool writes = (flags & O_ACCMODE) != O_RDONLY;
  const int descriptor = writes ? disturb(kOpen, path, body) : body();
  if (descriptor >= 0 && descriptor < static_cast<int>(is_below_root.size())) {
    is_below_root[static_cast<size_t>(descriptor)] = true;
  }
  return descriptor;
}

mode_t mode_of(int flags, va_list arguments) {
  return (flags & O_CREAT) != 0 || (flags & O_TMPFILE) == O_TMPFILE ? va_arg(arguments, mode_t) : 0;
}

}  // namespace

extern "C" {

#define OPEN_FUNCTION(name)                        \
  int name(const char* path, int flags, ...) {     \
    va_list arguments;                             \
    va_start(arguments, flags);                    \
    const mode_t mode = mode_of(flags, arguments); \
    va_end(arguments);                             \
    return open_file(AT_FDCWD, path, flags, mode); \
  }
#define OPENAT_FUNCTION(name)                              \
  int name(int folder, const char* path, int flags, ...) { \
    va_list arguments;                                     \
    va_start(arguments, flags);                            \
    const mode_t mode = mode_of(flags, arguments);         \
    va_end(arguments);                                     \
    return open_file(folder, path, flags, mode);           \
  }
OPEN_FUNCTION(open)
OPEN_FUNCTION(open64)
OPENAT_FUNCTION(openat)
OPENAT_FUNCTION(openat64)

ssize_t write(int descriptor, const void* bytes, size_t size) {
  static auto* const real = next<ssize_t(int, const void*, size_t)>("write");
  if (!tracked(descriptor)) return real(descriptor, bytes, size);
  return disturb(
      kWrite, path_of(descriptor), [&] { return real(descriptor, bytes, size); },
      [&] { return real(descriptor, bytes, (size + 1) / 2); }, [] {});
}

#define PWRITE_FUNCTION(name)                                                               \
  ssize_t name(int descriptor, const void* bytes, size_t size, off_t offset) {              \
    static auto* const real = next<ssize_t(int, const void*, size_t, off_t)>(#name);        \
    if (!tracked(descriptor)) return real(descriptor, bytes, size, offset);                 \
    return disturb(                                                                         \
        kWrite, path_of(descriptor), [&] { return real(descriptor, bytes, size, offset); }, \
        [&] { return real(descriptor, bytes, (size + 1) / 2, offset); }, [] {});            \
  }
PWRITE_FUNCTION(pwrite)
PWRITE_FUNCTION(pwrite64)

ssize_t writev(int descriptor, const iovec* parts, int count) {
  static auto* const real = next<ssize_t(int, const iovec*, int)>("writev");
  if (!tracked(descriptor)) return real(descriptor, parts, count);
  return disturb(
      kWrite, path_of(descriptor), [&] { return real(descriptor, parts, count); },
      [&] { return real(descriptor, parts, (count + 1) / 2); }, [] {});
}

#define SYNC_FUNCTION(name)                                                                        \
  int name(int descriptor) {                                                                       \
    static auto* const real = next<int(int)>(#name);                                               \
    const auto body = [&] { return real(descriptor); };                                            \
    if (!tracked(descriptor)) return body();                                                       \
    return disturb(kSync, path_of(descriptor), body, body, [&] { lose_second_half(descriptor); }); \
  }
SYNC_FUNCTION(fsync)
SYNC_FUNCTION(fdatasync)

int close(int descriptor) {
  static auto* const real = next<int(int)>("close");
  if (!tracked(descriptor)) return real(descriptor);
  is_below_root[static_cast<size_t>(descriptor)] = false;
  // A close that fails has closed the file nevertheless.
  return disturb(
      kClose, path_of(descriptor), [&] { return real(descriptor); },
      [&] { return real(descriptor); }, [&] { real(descriptor); });
}

#define TRUNCATE_FUNCTION(name)                                                          \
  int name(int descriptor, off_t size) {                                                 \
    static auto* const real = next<int(int, off_t)>(#name);                              \
    const auto body = [&] { return real(descriptor, size); };                            \
    return tracked(descriptor) ? disturb(kTruncate, path_of(descriptor), body) : body(); \
  }
TRUNCATE_FUNCTION(ftruncate)
TRUNCATE_FUNCTION(ftruncate64)

#define ALLOCATE_FUNCTION(name)                                                          \
  int name(int descriptor, int mode, off_t offset, off_t size) {                         \
    static auto* const real = next<int(int, int, off_t, off_t)>(#name);                  \
    const auto body = [&] { return real(descriptor, mode, offset, size); };              \
    return tracked(descriptor) ? disturb(kAllocate, path_of(descriptor), body) : body(); \
  }
ALLOCATE_FUNCTION(fallocate)
ALLOCATE_FUNCTION(fallocate64)

int rename(const char* from, const char* to) noexcept {
  static auto* const real = next<int(const char*, const char*)>("rename");
  const auto body = [&] { return real(from, to); };
  const std::string path = path_of(AT_FDCWD, to);
  return below_root(path) ? disturb(kRename, path, body) : body();
}

int renameat(int from_folder, const char* from, int to_folder, const char* to) noexcept {
  static auto* const real = next<int(int, const char*, int, const char*)>("renameat");
  const auto body = [&] { return real(from_folder, from, to_folder, to); };
  const std::string path = path_of(to_folder, to);
  return below_root(path) ? disturb(kRename, path, body) : body();
}

int renameat2(int from_folder, const char* from, int to_folder, const char* to,
              unsigned flags) noexcept {
  static auto* const real = next<int(int, const char*, int, const char*, unsigned)>("renameat2");
  const auto body = [&] { return real(from_folder, from, to_folder, to, flags); };
  const std::string path = path_of(to_folder, to);
  return below_root(path) ? disturb(kRename, path, body) : body();
}

#define REMOVE_FUNCTION(name)                                        \
  int name(const char* path) noexcept {                              \
    static auto* const real = next<int(const char*)>(#name);         \
    const auto body = [&] { return real(path); };                    \
    const std::string full = path_of(AT_FDCWD, path);                \
    return below_root(full) ? disturb(kUnlink, full, body) : body(); \
  }
REMOVE_FUNCTION(unlink)
REMOVE_FUNCTION(rmdir)
REMOVE_FUNCTION(remove)

int unlinkat(int folder, const char* name, int flags) noexcept {
  static auto* const real = next<int(int, const char*, int)>("unlinkat");
  const auto body = [&] { return real(folder, name, flags); };
  const std::string path = path_of(folder, name);
  return below_root(path) ? disturb(kUnlink, path, body) : body();
}

int mkdir(const char* path, mode_t mode) noexcept {
  static auto* const real = next<int(const char*, mode_t)>("mkdir");
  const auto body = [&] { return real(path, mode); };
  const std::string full = path_of(AT_FDCWD, path);
  return below_root(full) ? disturb(kMkdir, full, body) : body();
}

int symlink(const char* target, const char* path) noexcept {
  static auto* const real = next<int(const char*, const char*)>("symlink");
  const auto body = [&] { return real(target, path); };
  const std::string full = path_of(AT_FDCWD, path);
  return below_root(full) ? disturb(kLink, full, body) : body();
}

// Exchanged rows and gradients leave a rank by this call; weights do not.
int MPI_Isend(const void* buffer, int count, MPI_Datatype type, int to, int tag, MPI_Comm comm,
              MPI_Request* request) {
  const bool counted = plan().chosen && type == MPI_FLOAT && count > 0;
  if (counted && ++sends_so_far == plan().nan_at) {
    auto* values = static_cast<float*>(const_cast<void*>(buffer));
    values[0] = std::numeric_limits<float>::quiet_NaN();
    append(plan().log, "NaN send " + std::to_string(plan().nan_at) + "\n");
  }
  return PMPI_Isend(buffer, count, type, to, tag, comm, request);
}

}  // extern "C"
