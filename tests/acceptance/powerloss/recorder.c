/* LD_PRELOAD: records, in order and with contents, the writes and syncs that a process issues on files below a folder.
 *
 * RECORD_BELOW names the folder, RECORD_TO the log.  Each record is a header and its payload:
 *
 *   u32 type | u32 file | u64 offset | u64 length | u64 time (CLOCK_MONOTONIC, ns)
 *
 *   1 OPEN   payload: the path below the folder; offset: 1 when the descriptor is O_DSYNC or O_SYNC
 *   2 WRITE  issued; payload: the bytes            3 WROTE   returned; offset: the number of its WRITE record
 *   4 SYNC   issued                                5 SYNCED  returned; offset: the number of its SYNC record
 *   6 SIZE   ftruncate issued; length: the new size, no payload
 *   7 MARK   payload: what the program said with recorder_mark()
 *
 * A record's number is its place in the log.  Issue and return are told apart because a write that has not returned may
 * be on disk already, and only one that returned before a sync was issued is made durable by it.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { OPEN = 1, WRITE, WROTE, SYNC, SYNCED, SIZE, MARK };
enum { FDS = 65536, FILES = 1024 };

struct header { uint32_t type, file; uint64_t offset, length, time; };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int file_of[FDS];          /* 0: not ours */
static int is_durable[FDS];       /* O_DSYNC or O_SYNC */
static char *names[FILES];
static int files;
static int log_fd = -1;
static uint64_t records;
static const char *below;
static size_t below_size;

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static void start(void)
{
    const char *to = getenv("RECORD_TO");
    below = getenv("RECORD_BELOW");
    if (!to || !below) { log_fd = -2; return; }
    below_size = strlen(below);
    log_fd = REAL(open)(to, O_CREAT | O_WRONLY | O_APPEND | O_CLOEXEC, 0600);
    if (log_fd < 0) abort();
}

static void put(const void *data, size_t size)
{
    const char *at = data;
    while (size) {
        ssize_t n = REAL(write)(log_fd, at, size);
        if (n < 0) { if (errno == EINTR) continue; abort(); }
        at += n;
        size -= n;
    }
}

/* Both with the lock held. */
static uint64_t record(uint32_t type, uint32_t file, uint64_t offset, uint64_t length)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    struct header h = { type, file, offset, length, (uint64_t)t.tv_sec * 1000000000u + t.tv_nsec };
    put(&h, sizeof h);
    return records++;
}

static uint64_t issue(uint32_t type, int fd, const struct iovec *iov, int count, uint64_t offset)
{
    size_t size = 0;
    for (int i = 0; i < count; i++) size += iov[i].iov_len;
    pthread_mutex_lock(&lock);
    uint64_t number = record(type, file_of[fd], offset, size);
    for (int i = 0; i < count; i++) put(iov[i].iov_base, iov[i].iov_len);
    pthread_mutex_unlock(&lock);
    return number;
}

static void returned(uint32_t type, int fd, uint64_t number, int64_t result)
{
    int saved = errno;
    pthread_mutex_lock(&lock);
    if (fd >= 0 && fd < FDS && result >= 0) {
        record(type, file_of[fd] | (is_durable[fd] ? 0x80000000u : 0), number, type == WROTE ? result : 0);
    }
    pthread_mutex_unlock(&lock);
    errno = saved;
}

static int ours(int fd) { return fd >= 0 && fd < FDS && file_of[fd]; }

void recorder_mark(const char *text, size_t size)
{
    pthread_mutex_lock(&lock);
    if (log_fd == -1) start();
    if (log_fd >= 0) { record(MARK, 0, 0, size); put(text, size); }
    pthread_mutex_unlock(&lock);
}

static void opened(int fd, int flags)
{
    char link[64], path[PATH_MAX];
    struct stat st;
    if (fd < 0 || fd >= FDS) return;
    int saved = errno;
    pthread_mutex_lock(&lock);
    if (log_fd == -1) start();
    file_of[fd] = 0;
    if (log_fd < 0 || fstat(fd, &st) || !S_ISREG(st.st_mode)) goto out;
    strcpy(link, "/proc/self/fd/");
    char digits[16];
    int n = 0, v = fd;
    do digits[n++] = '0' + v % 10; while (v /= 10);
    char *end = link + strlen(link);
    while (n) *end++ = digits[--n];
    *end = 0;
    ssize_t size = readlink(link, path, sizeof path - 1);
    if (size < 0) goto out;
    path[size] = 0;
    if (strncmp(path, below, below_size) || path[below_size] != '/') goto out;
    const char *name = path + below_size + 1;
    int file = 1;
    while (file <= files && strcmp(names[file], name)) file++;
    if (file >= FILES) abort();
    if (file > files) { names[file] = strdup(name); files = file; }
    file_of[fd] = file;
    is_durable[fd] = (flags & (O_DSYNC | O_SYNC)) != 0;
    record(OPEN, file, is_durable[fd], strlen(name));
    put(name, strlen(name));
    if (flags & O_TRUNC) record(SIZE, file, 0, 0);
out:
    pthread_mutex_unlock(&lock);
    errno = saved;
}

#define MODE(flags) \
    mode_t mode = 0; \
    if ((flags) & (O_CREAT | O_TMPFILE)) { va_list a; va_start(a, flags); mode = va_arg(a, mode_t); va_end(a); }

int open(const char *path, int flags, ...) { MODE(flags) int fd = REAL(open)(path, flags, mode); opened(fd, flags); return fd; }
int open64(const char *path, int flags, ...) { MODE(flags) int fd = REAL(open64)(path, flags, mode); opened(fd, flags); return fd; }
int openat(int d, const char *path, int flags, ...) { MODE(flags) int fd = REAL(openat)(d, path, flags, mode); opened(fd, flags); return fd; }
int openat64(int d, const char *path, int flags, ...) { MODE(flags) int fd = REAL(openat64)(d, path, flags, mode); opened(fd, flags); return fd; }

int close(int fd)
{
    if (fd >= 0 && fd < FDS) file_of[fd] = 0;
    return REAL(close)(fd);
}

static int duplicated(int old, int new)
{
    if (new >= 0 && new < FDS) {
        file_of[new] = ours(old) ? file_of[old] : 0;
        is_durable[new] = ours(old) && is_durable[old];
    }
    return new;
}

int dup(int fd) { return duplicated(fd, REAL(dup)(fd)); }
int dup2(int fd, int to) { return duplicated(fd, REAL(dup2)(fd, to)); }
int dup3(int fd, int to, int flags) { return duplicated(fd, REAL(dup3)(fd, to, flags)); }

#define WRITING(call, iov, count, at) \
    do { \
        uint64_t number = issue(WRITE, fd, iov, count, at); \
        ssize_t result = call; \
        returned(WROTE, fd, number, result); \
        return result; \
    } while (0)

static uint64_t position(int fd)
{
    return fcntl(fd, F_GETFL) & O_APPEND ? lseek(fd, 0, SEEK_END) : lseek(fd, 0, SEEK_CUR);
}

ssize_t write(int fd, const void *data, size_t size)
{
    if (!ours(fd)) return REAL(write)(fd, data, size);
    struct iovec one = { (void *)data, size };
    WRITING(REAL(write)(fd, data, size), &one, 1, position(fd));
}

ssize_t writev(int fd, const struct iovec *iov, int count)
{
    if (!ours(fd)) return REAL(writev)(fd, iov, count);
    WRITING(REAL(writev)(fd, iov, count), iov, count, position(fd));
}

#define PWRITE(name) \
    ssize_t name(int fd, const void *data, size_t size, off_t at) \
    { \
        if (!ours(fd)) return REAL(name)(fd, data, size, at); \
        struct iovec one = { (void *)data, size }; \
        WRITING(REAL(name)(fd, data, size, at), &one, 1, at); \
    }
PWRITE(pwrite)
PWRITE(pwrite64)

#define PWRITEV(name) \
    ssize_t name(int fd, const struct iovec *iov, int count, off_t at) \
    { \
        if (!ours(fd)) return REAL(name)(fd, iov, count, at); \
        WRITING(REAL(name)(fd, iov, count, at), iov, count, at); \
    }
PWRITEV(pwritev)
PWRITEV(pwritev64)

#define SYNCING(name) \
    int name(int fd) \
    { \
        if (!ours(fd)) return REAL(name)(fd); \
        uint64_t number = issue(SYNC, fd, 0, 0, 0); \
        int result = REAL(name)(fd); \
        returned(SYNCED, fd, number, result); \
        return result; \
    }
SYNCING(fsync)
SYNCING(fdatasync)

#define SIZING(name) \
    int name(int fd, off_t size) \
    { \
        if (ours(fd)) { pthread_mutex_lock(&lock); record(SIZE, file_of[fd], 0, size); pthread_mutex_unlock(&lock); } \
        return REAL(name)(fd, size); \
    }
SIZING(ftruncate)
SIZING(ftruncate64)

/* What a mapping changes is not seen here, so a program that relies on it must not be recorded in silence. */
int msync(void *at, size_t size, int flags)
{
    (void)at; (void)size; (void)flags;
    abort();
}
