/* Preloaded in front of libc: alters what io_uring answers to chosen reads, or delays it.
 *
 * FAULTS and DELAYS as in reads.c, FAULTS counted over all reads that io_uring answers.
 * The reads of its eventfd, which have the name of all ones, are not counted. ENTER_FAULTS:
 * "first-last:errno": these calls of io_uring_enter, counted from 1, do nothing but fail.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <linux/io_uring.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

const char *fault_of(unsigned long call, off_t offset, size_t bytes);
void read_begins(void);
void read_ends(void);
int damaged(const char *fault, const struct iovec *last);

enum { kNames = 1024 };

/* The reads of one ring, mapped a second time; the tests have one or two rings at a time. */
struct ring {
  int descriptor;
  char *base;
  struct io_cqring_offsets offsets;
  unsigned seen;
  struct io_sqring_offsets asked_offsets;
  struct io_uring_sqe *asked;
  unsigned begun;
  struct iovec last[kNames]; /* piece of what was asked for under this name */
  off_t offset[kNames];
  size_t bytes[kNames];
};

static struct ring rings[16];
static atomic_uint made;
static atomic_ulong reads;
static atomic_ulong enters;

static void remember(int descriptor, const struct io_uring_params *params) {
  size_t bytes = params->cq_off.cqes + params->cq_entries * sizeof(struct io_uring_cqe);
  const size_t asked_bytes = params->sq_off.array + params->sq_entries * sizeof(unsigned);
  bytes = bytes < asked_bytes ? asked_bytes : bytes;
  struct ring *ring = &rings[atomic_fetch_add(&made, 1) % 16];
  ring->descriptor = descriptor;
  ring->base = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor,
                    IORING_OFF_CQ_RING);
  ring->offsets = params->cq_off;
  ring->seen = 0;
  ring->asked_offsets = params->sq_off;
  ring->asked = mmap(NULL, params->sq_entries * sizeof(struct io_uring_sqe), PROT_READ | PROT_WRITE,
                     MAP_SHARED, descriptor, IORING_OFF_SQES);
  ring->begun = 0;
}

/* What has been put in since the last time, and goes to the kernel now. */
static void begin(struct ring *ring) {
  const unsigned tail = *(unsigned *)(ring->base + ring->asked_offsets.tail);
  const unsigned mask = *(unsigned *)(ring->base + ring->asked_offsets.ring_mask);
  for (; ring->begun != tail; ++ring->begun) {
    const struct io_uring_sqe *read = &ring->asked[ring->begun & mask];
    if (read->user_data == ~0ull) {
      continue;
    }
    read_begins();
    const unsigned long name = read->user_data % kNames;
    const struct iovec whole = {(void *)read->addr, read->len};
    const int vectored = read->opcode == IORING_OP_READV;
    const struct iovec *pieces = vectored ? (const struct iovec *)read->addr : &whole;
    const unsigned count = vectored ? read->len : 1;
    ring->last[name] = pieces[count - 1];
    ring->offset[name] = (off_t)read->off;
    ring->bytes[name] = 0;
    for (unsigned i = 0; i < count; ++i) {
      ring->bytes[name] += pieces[i].iov_len;
    }
  }
}

static void alter(struct ring *ring) {
  const unsigned tail =
      __atomic_load_n((unsigned *)(ring->base + ring->offsets.tail), __ATOMIC_ACQUIRE);
  const unsigned mask = *(unsigned *)(ring->base + ring->offsets.ring_mask);
  struct io_uring_cqe *answers = (struct io_uring_cqe *)(ring->base + ring->offsets.cqes);
  for (; ring->seen != tail; ++ring->seen) {
    struct io_uring_cqe *answer = &answers[ring->seen & mask];
    if (answer->user_data == ~0ull) {
      continue;
    }
    read_ends();
    const unsigned long name = answer->user_data % kNames;
    const char *fault =
        fault_of(atomic_fetch_add(&reads, 1) + 1, ring->offset[name], ring->bytes[name]);
    if (fault != NULL && !damaged(fault, &ring->last[name])) {
      answer->res = strncmp(fault, "short", 5) == 0 ? 512 : -atoi(fault);
    }
  }
}

static struct ring *ring_of(int descriptor) {
  for (unsigned i = made < 16 ? made : 16; i-- > 0;) {
    if (rings[i].descriptor == descriptor) {
      return &rings[i];
    }
  }
  return NULL;
}

static int enter_fault(void) {
  const unsigned long call = atomic_fetch_add(&enters, 1) + 1;
  const char *faults = getenv("ENTER_FAULTS");
  unsigned long first, last;
  int error_number;
  return faults != NULL && sscanf(faults, "%lu-%lu:%d", &first, &last, &error_number) == 3 &&
                 first <= call && call <= last
             ? error_number
             : 0;
}

long syscall(long number, ...) {
  typedef long (*function)(long, long, long, long, long, long, long);
  static _Atomic(function) known;
  function real = known;
  if (real == NULL) {
    known = real = (function)dlsym(RTLD_NEXT, "syscall");
  }
  va_list list;
  va_start(list, number);
  long given[6];
  for (int i = 0; i < 6; ++i) {
    given[i] = va_arg(list, long);
  }
  va_end(list);
  if (number == __NR_io_uring_enter && (errno = enter_fault()) != 0) {
    return -1;
  }
  struct ring *ring = number == __NR_io_uring_enter ? ring_of((int)given[0]) : NULL;
  if (ring != NULL) {
    alter(ring);
    begin(ring);
  }
  const long result = real(number, given[0], given[1], given[2], given[3], given[4], given[5]);
  const int error_number = errno;
  if (number == __NR_io_uring_setup && result >= 0) {
    remember((int)result, (const struct io_uring_params *)given[1]);
  } else if (ring != NULL) {
    const char *delays = getenv("DELAYS");
    if (delays != NULL) {
      usleep((reads * 2654435761u >> 7) % (unsigned)atoi(delays));
    }
    alter(ring);
  }
  errno = error_number;
  return result;
}
