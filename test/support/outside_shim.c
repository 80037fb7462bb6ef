/* Preloaded in front of libc: appends to the file OUTSIDE_LOG a line for everything with which a
 * process, whatever its language, reaches out of itself: "lookup HOST", "connect ADDRESS",
 * "send ADDRESS", "write PATH" (opened so that it could be written, made, renamed), "run PATH".
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <netdb.h>
#include <netinet/in.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static void note(const char *what, const char *object) {
  const char *path = getenv("OUTSIDE_LOG");
  if (path == NULL) {
    return;
  }
  const int kept = errno;
  char line[PATH_MAX + 64];
  const int size = snprintf(line, sizeof line, "%s %s\n", what, object != NULL ? object : "");
  const int file = (int)syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_APPEND | O_CREAT, 0600);
  if (file < 0 || write(file, line, (size_t)size) != size) {
    abort(); /* what is not seen must not pass */
  }
  close(file);
  errno = kept;
}

static void note_address(const char *what, const struct sockaddr *address) {
  char text[sizeof(struct sockaddr_un) + 8] = "";
  if (address == NULL) {
    return; /* of a socket that is connected */
  }
  if (address->sa_family == AF_INET) {
    inet_ntop(AF_INET, &((const struct sockaddr_in *)address)->sin_addr, text, sizeof text);
  } else if (address->sa_family == AF_INET6) {
    inet_ntop(AF_INET6, &((const struct sockaddr_in6 *)address)->sin6_addr, text, sizeof text);
  } else if (address->sa_family == AF_UNIX) {
    snprintf(text, sizeof text, "unix:%s", ((const struct sockaddr_un *)address)->sun_path);
  } else if (address->sa_family == AF_NETLINK) {
    return; /* questions to this kernel */
  } else {
    snprintf(text, sizeof text, "family:%d", address->sa_family);
  }
  note(what, text);
}

static void note_path(int folder, const char *path) {
  char link[64], whole[2 * PATH_MAX] = "";
  if (path[0] != '/') {
    snprintf(link, sizeof link, folder == AT_FDCWD ? "/proc/self/cwd" : "/proc/self/fd/%d", folder);
    const ssize_t size = readlink(link, whole, PATH_MAX);
    if (size > 0) {
      whole[size] = '/';
    }
  }
  note("write", strncat(whole, path, PATH_MAX - 1));
}

int getaddrinfo(const char *host, const char *service, const struct addrinfo *hints,
                struct addrinfo **found) {
  note("lookup", host);
  return REAL(getaddrinfo)(host, service, hints, found);
}

struct hostent *gethostbyname(const char *host) {
  note("lookup", host);
  return REAL(gethostbyname)(host);
}

int connect(int socket, const struct sockaddr *address, socklen_t size) {
  note_address("connect", address);
  return REAL(connect)(socket, address, size);
}

ssize_t sendto(int socket, const void *data, size_t size, int flags, const struct sockaddr *to,
               socklen_t length) {
  note_address("send", to);
  return REAL(sendto)(socket, data, size, flags, to, length);
}

ssize_t sendmsg(int socket, const struct msghdr *message, int flags) {
  note_address("send", message->msg_name);
  return REAL(sendmsg)(socket, message, flags);
}

int sendmmsg(int socket, struct mmsghdr *messages, unsigned count, int flags) {
  for (unsigned i = 0; i < count; ++i) {
    note_address("send", messages[i].msg_hdr.msg_name);
  }
  return REAL(sendmmsg)(socket, messages, count, flags);
}

#define OPENED(folder, path, flags)                                  \
  va_list rest;                                                      \
  va_start(rest, flags);                                             \
  const mode_t mode = (flags) & (O_CREAT | __O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
  va_end(rest);                                                      \
  if ((flags) & (O_WRONLY | O_RDWR | O_CREAT | O_TRUNC)) {           \
    note_path(folder, path);                                         \
  }

int open(const char *path, int flags, ...) {
  OPENED(AT_FDCWD, path, flags)
  return REAL(open)(path, flags, mode);
}

int open64(const char *path, int flags, ...) {
  OPENED(AT_FDCWD, path, flags)
  return REAL(open64)(path, flags, mode);
}

int openat(int folder, const char *path, int flags, ...) {
  OPENED(folder, path, flags)
  return REAL(openat)(folder, path, flags, mode);
}

int openat64(int folder, const char *path, int flags, ...) {
  OPENED(folder, path, flags)
  return REAL(openat64)(folder, path, flags, mode);
}

FILE *fopen(const char *path, const char *mode) {
  if (strpbrk(mode, "wa+") != NULL) {
    note_path(AT_FDCWD, path);
  }
  return REAL(fopen)(path, mode);
}

FILE *fopen64(const char *path, const char *mode) {
  if (strpbrk(mode, "wa+") != NULL) {
    note_path(AT_FDCWD, path);
  }
  return REAL(fopen64)(path, mode);
}

int mkdir(const char *path, mode_t mode) {
  note_path(AT_FDCWD, path);
  return REAL(mkdir)(path, mode);
}

int mkdirat(int folder, const char *path, mode_t mode) {
  note_path(folder, path);
  return REAL(mkdirat)(folder, path, mode);
}

int rename(const char *from, const char *to) {
  note_path(AT_FDCWD, to);
  return REAL(rename)(from, to);
}

int renameat(int folder, const char *from, int other, const char *to) {
  note_path(other, to);
  return REAL(renameat)(folder, from, other, to);
}

int execve(const char *path, char *const arguments[], char *const environment[]) {
  note("run", path);
  return REAL(execve)(path, arguments, environment);
}

int execv(const char *path, char *const arguments[]) {
  note("run", path);
  return REAL(execv)(path, arguments);
}

int posix_spawn(pid_t *number, const char *path, const posix_spawn_file_actions_t *actions,
                const posix_spawnattr_t *attributes, char *const arguments[],
                char *const environment[]) {
  note("run", path);
  return REAL(posix_spawn)(number, path, actions, attributes, arguments, environment);
}
