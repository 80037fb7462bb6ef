/* Preloaded in front of libc: counts calls about the files below a folder, and lets one go wrong.
 *
 * CALL_FOLDER: which folder. CALL_KIND: "change", all that change files or their names or wait for
 * the medium; "write", those of them that take room; "read", those that read. CALL_FAULT: "n:what"
 * for the call with this number, counted from 1, or "n+:what" from there on; what is "kill", before
 * the call is made; an errno number; "short", half of what is written or read; or "sector", 512
 * bytes of what is read are others.
 * calls_seen() says how many there were, calls_met() how many went wrong.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

enum kind { kName, kWrite, kRead }; /* a change that takes no room, one that does, a reading */

static atomic_ulong calls;
static atomic_ulong met;

unsigned long calls_seen(void) { return calls; }

unsigned long calls_met(void) { return met; }

static int below(const char *path) {
  const char *folder = getenv("CALL_FOLDER");
  return folder != NULL && strncmp(path, folder, strlen(folder)) == 0;
}

static int file_below(int file) {
  char name[64];
  char path[PATH_MAX];
  snprintf(name, sizeof name, "/proc/self/fd/%d", file);
  const ssize_t size = readlink(name, path, sizeof path - 1);
  path[size < 0 ? 0 : size] = '\0';
  return below(path);
}

static int path_below(int folder, const char *path) {
  return path[0] == '/' ? below(path) : folder != AT_FDCWD && file_below(folder);
}

static int counted(enum kind kind) {
  const char *wanted = getenv("CALL_KIND");
  return wanted != NULL && (strcmp(wanted, "read") == 0    ? kind == kRead
                            : strcmp(wanted, "write") == 0 ? kind == kWrite
                                                           : kind != kRead);
}

enum verdict { kFail = -1, kGoOn, kHalf, kSector }; /* errno says how it fails */

static enum verdict verdict(enum kind kind, int there) {
  if (!there || !counted(kind)) {
    return kGoOn;
  }
  const unsigned long call = atomic_fetch_add(&calls, 1) + 1;
  const char *fault = getenv("CALL_FAULT");
  if (fault == NULL) {
    return kGoOn;
  }
  char *what;
  const unsigned long number = strtoul(fault, &what, 10);
  const int on = *what == '+';
  what += on + 1;
  if (number != call && !(on && number < call)) {
    return kGoOn;
  }
  atomic_fetch_add(&met, 1);
  if (strcmp(what, "kill") == 0) {
    raise(SIGKILL);
  }
  if (strcmp(what, "short") == 0) {
    return kHalf;
  }
  if (strcmp(what, "sector") == 0) {
    return kSector;
  }
  errno = atoi(what);
  return kFail;
}

static size_t half(enum verdict verdict, size_t bytes) {
  return verdict == kHalf && bytes > 1 ? bytes / 2 : bytes;
}

/* Alters what was read where it is to be altered. */
static ssize_t arrived(enum verdict verdict, void *data, ssize_t bytes) {
  if (verdict == kSector && bytes > 0) {
    for (ssize_t at = bytes / 2; at < bytes && at < bytes / 2 + 512; ++at) {
      ((unsigned char *)data)[at] ^= 0x55;
    }
  }
  return bytes;
}

#define WRITING(name, declared, given)                        \
  ssize_t name declared {                                     \
    const enum verdict found = verdict(kWrite, file_below(file)); \
    bytes = half(found, bytes);                               \
    return found == kFail ? -1 : REAL(name) given;            \
  }

#define READING(name, declared, given)                        \
  ssize_t name declared {                                     \
    const enum verdict found = verdict(kRead, file_below(file)); \
    bytes = half(found, bytes);                               \
    return found == kFail ? -1 : arrived(found, data, REAL(name) given); \
  }

#define ON_FILE(name, declared, given)                        \
  int name declared {                                         \
    return verdict(kName, file_below(file)) == kFail ? -1 : REAL(name) given; \
  }

#define ON_PATH(kind, name, declared, folder, path, given)    \
  int name declared {                                         \
    return verdict(kind, path_below(folder, path)) == kFail ? -1 : REAL(name) given; \
  }

WRITING(write, (int file, const void *data, size_t bytes), (file, data, bytes))
WRITING(pwrite, (int file, const void *data, size_t bytes, off_t at), (file, data, bytes, at))
WRITING(pwrite64, (int file, const void *data, size_t bytes, off64_t at), (file, data, bytes, at))
READING(read, (int file, void *data, size_t bytes), (file, data, bytes))
READING(pread, (int file, void *data, size_t bytes, off_t at), (file, data, bytes, at))
READING(pread64, (int file, void *data, size_t bytes, off64_t at), (file, data, bytes, at))

/* Of one piece, as Python makes them. */
#define READING_PIECES(name)                                                            \
  ssize_t name(int file, const struct iovec *pieces, int count, off_t at, int flags) {  \
    const enum verdict found = verdict(kRead, file_below(file));                        \
    const struct iovec piece = {pieces->iov_base, half(found, pieces->iov_len)};        \
    return found == kFail   ? -1                                                        \
           : found == kGoOn ? REAL(name)(file, pieces, count, at, flags)                \
                            : arrived(found, piece.iov_base,                            \
                                      REAL(name)(file, &piece, 1, at, flags));          \
  }

READING_PIECES(preadv2)
READING_PIECES(preadv64v2)

ON_FILE(fsync, (int file), (file))
ON_FILE(fdatasync, (int file), (file))
ON_FILE(ftruncate, (int file, off_t size), (file, size))
ON_FILE(ftruncate64, (int file, off64_t size), (file, size))
ON_FILE(fchmod, (int file, mode_t mode), (file, mode))

ON_PATH(kName, rename, (const char *from, const char *to), AT_FDCWD, from, (from, to))
ON_PATH(kName, renameat, (int folder, const char *from, int target, const char *to), folder, from,
        (folder, from, target, to))
ON_PATH(kName, renameat2,
        (int folder, const char *from, int target, const char *to, unsigned flags), folder, from,
        (folder, from, target, to, flags))
ON_PATH(kName, unlink, (const char *path), AT_FDCWD, path, (path))
ON_PATH(kName, unlinkat, (int folder, const char *path, int flags), folder, path, (folder, path, flags))
ON_PATH(kName, rmdir, (const char *path), AT_FDCWD, path, (path))

/* A folder and a new file take room. */
ON_PATH(kWrite, mkdir, (const char *path, mode_t mode), AT_FDCWD, path, (path, mode))
ON_PATH(kWrite, mkdirat, (int folder, const char *path, mode_t mode), folder, path, (folder, path, mode))
ON_PATH(kWrite, symlink, (const char *to, const char *path), AT_FDCWD, path, (to, path))

static int made(int flags) { return (flags & O_CREAT) != 0 || (flags & O_TMPFILE) == O_TMPFILE; }

#define OPENING(name, declared, folder, path, given)                        \
  int name declared {                                                             \
    mode_t mode = 0;                                                              \
    if (made(flags)) {                                                            \
      va_list more;                                                               \
      va_start(more, flags);                                                      \
      mode = va_arg(more, mode_t);                                                \
      va_end(more);                                                               \
    }                                                                             \
    const int there = made(flags) && path_below(folder, path);                    \
    return verdict(kWrite, there) == kFail ? -1 : REAL(name) given;                    \
  }

OPENING(open, (const char *path, int flags, ...), AT_FDCWD, path, (path, flags, mode))
OPENING(open64, (const char *path, int flags, ...), AT_FDCWD, path, (path, flags, mode))
OPENING(openat, (int folder, const char *path, int flags, ...), folder, path,
        (folder, path, flags, mode))
OPENING(openat64, (int folder, const char *path, int flags, ...), folder, path,
        (folder, path, flags, mode))
