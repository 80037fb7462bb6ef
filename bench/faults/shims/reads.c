/* Preloaded in front of libc: makes chosen preadv calls fail, end early or take their time.
 *
 * FAULTS: "n:what" separated by commas, n counted from 1 over all preadv calls, or "n+:what" for all
 * from there on; what is an errno number; "short"; "stall" with milliseconds; "flip", which alters
 * the last byte that was read; or "late", which alters it only when the next read begins.
 * FAULT_PLACE: "offset:times:what", the same for so many reads in which this byte of the file lies.
 * DELAYS: each call first sleeps up to so many microseconds, by a fixed pseudo-random sequence.
 * most_in_flight() says how many reads there were at once, reads_seen() how many in all,
 * faults_met() how many of them were altered.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

typedef ssize_t (*preadv_function)(int, const struct iovec *, int, off_t);

static atomic_ulong calls;
static atomic_ulong seen;
static atomic_ulong met;
static atomic_long at_place;
static atomic_int in_flight;
static atomic_int most;
static _Atomic(unsigned char *) late;

int most_in_flight(void) { return most; }

unsigned long reads_seen(void) { return seen; }

unsigned long faults_met(void) { return met; }

void read_begins(void) {
  const int now = atomic_fetch_add(&in_flight, 1) + 1;
  int before = most;
  while (before < now && !atomic_compare_exchange_weak(&most, &before, now)) {
  }
  unsigned char *byte = atomic_exchange(&late, NULL);
  if (byte != NULL) {
    *byte ^= 1;
  }
}

void read_ends(void) { atomic_fetch_sub(&in_flight, 1); }

/* "flip" or "late" on what has arrived in the last of some pieces; 0 for other faults. */
int damaged(const char *fault, const struct iovec *last) {
  unsigned char *byte = (unsigned char *)last->iov_base + last->iov_len - 1;
  if (strncmp(fault, "flip", 4) == 0) {
    *byte ^= 1;
    return 1;
  }
  if (strncmp(fault, "late", 4) == 0) {
    late = byte;
    return 1;
  }
  return 0;
}

/* What is to happen to a read of this place, of which there may have been enough. */
static const char *fault_at(off_t offset, size_t bytes) {
  const char *fault = getenv("FAULT_PLACE");
  if (fault == NULL) {
    return NULL;
  }
  char *end;
  const off_t place = strtoll(fault, &end, 10);
  const long times = strtol(end + 1, &end, 10);
  const int there = offset <= place && place < offset + (off_t)bytes;
  return there && atomic_fetch_add(&at_place, 1) < times ? end + 1 : NULL;
}

/* What is to happen to this call, counted from 1; NULL: nothing. */
static const char *fault_number(unsigned long call) {
  const char *faults = getenv("FAULTS");
  while (faults != NULL && *faults != '\0') {
    char *end;
    const unsigned long number = strtoul(faults, &end, 10);
    const int on = *end == '+';
    if (number == call || (on && number < call)) {
      return end + on + 1;
    }
    faults = strchr(end, ',');
    faults = faults == NULL ? NULL : faults + 1;
  }
  return NULL;
}

/* What is to happen to this call, counted from 1, a stall having happened; NULL: nothing. */
const char *fault_of(unsigned long call, off_t offset, size_t bytes) {
  atomic_fetch_add(&seen, 1);
  const char *fault = fault_number(call);
  fault = fault == NULL ? fault_at(offset, bytes) : fault;
  if (fault == NULL) {
    return NULL;
  }
  atomic_fetch_add(&met, 1);
  if (strncmp(fault, "stall", 5) == 0) {
    usleep(1000 * (unsigned)atoi(fault + 5));
    return NULL;
  }
  return fault;
}

static ssize_t answer(int file, const struct iovec *pieces, int count, off_t offset) {
  const preadv_function real = (preadv_function)dlsym(RTLD_NEXT, "preadv64");
  const unsigned long call = atomic_fetch_add(&calls, 1) + 1;
  const char *delays = getenv("DELAYS");
  if (delays != NULL) {
    usleep((call * 2654435761u >> 7) % (unsigned)atoi(delays));
  }
  size_t bytes = 0;
  for (int i = 0; i < count; ++i) {
    bytes += pieces[i].iov_len;
  }
  const char *fault = fault_of(call, offset, bytes);
  if (fault == NULL) {
    return real(file, pieces, count, offset);
  }
  if (strncmp(fault, "flip", 4) == 0 || strncmp(fault, "late", 4) == 0) {
    const ssize_t found = real(file, pieces, count, offset);
    damaged(fault, &pieces[count - 1]);
    return found;
  }
  if (strncmp(fault, "short", 5) == 0) {
    const struct iovec less = {pieces[0].iov_base, 512};
    return real(file, &less, 1, offset);
  }
  errno = atoi(fault);
  return -1;
}

static ssize_t altered(int file, const struct iovec *pieces, int count, off_t offset) {
  read_begins();
  const ssize_t bytes = answer(file, pieces, count, offset);
  const int error_number = errno;
  read_ends();
  errno = error_number;
  return bytes;
}

/* The two names of one call. */
ssize_t preadv(int file, const struct iovec *pieces, int count, off_t offset) {
  return altered(file, pieces, count, offset);
}

ssize_t preadv64(int file, const struct iovec *pieces, int count, off_t offset) {
  return altered(file, pieces, count, offset);
}
