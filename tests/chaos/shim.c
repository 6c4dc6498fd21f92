/* Faults at the file layer, for LD_PRELOAD: what libc does below a folder is counted, and may fail.

   chaos_arm("seed=3;at=12;ops=write;errno=28;under=/run") sets one fault. Without, calls go through
   as they are. Fields:

     under   a folder, or several with ':', that the fault is for
     count   a file that is mapped, with how often each operation was called there
     ops     which operations count and fail, with ',': open create write fsync rename make remove
             read stat
     at      the call that fails, from 1; times: how many do (0: all from then on)
     errno   what they fail with
     bytes   in the place of `at`: writes fail when so many bytes were written
     short   every write writes a part of what it was given, drawn from the seed
     before  milliseconds that a rename takes before it is done; after: behind it
     lost    the rename `at` is done, and told as failed, as by a server whose answer was lost
     kill    the process is killed at the call `at`; 2: behind a rename that was done
     slow    milliseconds that a read takes
     stale   what was changed in so many milliseconds before is not seen for as long; one in two
     back    seconds by which the clock of the wall jumps back, at the call `at` of Python
*/
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { OPEN, CREATE, WRITE, FSYNC, RENAME, MAKE, REMOVE, READ, STAT, BYTES, CLOCK, HITS, COUNTED };
static const char *NAMES[] = {"open", "create", "write", "fsync", "rename",
                              "make", "remove", "read",  "stat"};
enum { OPS = sizeof NAMES / sizeof *NAMES };

static struct {
    int armed, code, cut, lost, kill;
    unsigned ops;
    long at, times, bytes, before, after, stale, back, slow;
    uint64_t seed;
    char under[2 * PATH_MAX];
    struct timespec since;
} fault;
static _Atomic long seen, written;
static _Atomic long spare[COUNTED];
static _Atomic long *counts = spare;

#define REAL(type, name, ...)                                   \
    static type (*real_##name)(__VA_ARGS__);                    \
    if (!real_##name) real_##name = dlsym(RTLD_NEXT, #name)

/* ---- What is asked for */

static long number(const char *spec, const char *key, long missing) {
    char wanted[32];
    snprintf(wanted, sizeof wanted, ";%s=", key);
    const char *found = strstr(spec, wanted);
    return found ? strtol(found + strlen(wanted), NULL, 10) : missing;
}

static void text(const char *spec, const char *key, char *out, size_t size) {
    char wanted[32];
    snprintf(wanted, sizeof wanted, ";%s=", key);
    const char *found = strstr(spec, wanted);
    if (!found) { *out = 0; return; }
    found += strlen(wanted);
    snprintf(out, size, "%.*s", (int)strcspn(found, ";"), found);
}

static void count_in(const char *file) {
    int descriptor = open(file, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    if (descriptor < 0 || ftruncate(descriptor, sizeof spare)) abort();
    void *at = mmap(NULL, sizeof spare, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
    if (at == MAP_FAILED) abort();
    close(descriptor);
    counts = at;
}

void chaos_arm(const char *given) {
    char spec[4 * PATH_MAX], ops[256], file[PATH_MAX];
    snprintf(spec, sizeof spec, ";%s", given);
    fault.armed = 0;
    text(spec, "count", file, sizeof file);
    if (*file) count_in(file);
    text(spec, "under", fault.under, sizeof fault.under);
    text(spec, "ops", ops, sizeof ops);
    fault.ops = 0;
    for (int op = 0; op < OPS; op++) fault.ops |= (unsigned)(strstr(ops, NAMES[op]) != NULL) << op;
    fault.seed = (uint64_t)number(spec, "seed", 0) * 2654435769u + 1;
    fault.at = number(spec, "at", 0);
    fault.times = number(spec, "times", 1);
    fault.code = (int)number(spec, "errno", EIO);
    fault.bytes = number(spec, "bytes", -1);
    fault.cut = (int)number(spec, "short", 0);
    fault.before = number(spec, "before", 0);
    fault.after = number(spec, "after", 0);
    fault.lost = (int)number(spec, "lost", 0);
    fault.kill = (int)number(spec, "kill", 0);
    fault.slow = number(spec, "slow", 0);
    fault.stale = number(spec, "stale", 0);
    fault.back = number(spec, "back", 0);
    clock_gettime(CLOCK_REALTIME, &fault.since);
    seen = written = 0;
    fault.armed = 1;
}

/* ---- What a call is about, and what becomes of it */

static int below(const char *path) {
    for (const char *under = fault.under; *under;) {
        size_t length = strcspn(under, ":");
        if (length && !strncmp(path, under, length) && (!path[length] || path[length] == '/'))
            return 1;
        under += length + (under[length] == ':');
    }
    return 0;
}

static int link_of(int descriptor, char *out, size_t size) {
    char name[64];
    snprintf(name, sizeof name, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(name, out, size - 1);
    out[length > 0 ? length : 0] = 0;
    return length > 0;
}

static int watched_at(int folder, const char *path) {
    char whole[2 * PATH_MAX];
    if (!fault.armed || !path) return 0;
    if (*path == '/') return below(path);
    if (folder == AT_FDCWD ? !getcwd(whole, PATH_MAX) : !link_of(folder, whole, PATH_MAX)) return 0;
    snprintf(whole + strlen(whole), PATH_MAX, "/%s", path);
    return below(whole);
}

static int watched(int descriptor) {
    char whole[PATH_MAX];
    return fault.armed && link_of(descriptor, whole, sizeof whole) && below(whole);
}

static uint64_t draw(void) {
    fault.seed ^= fault.seed << 13;
    fault.seed ^= fault.seed >> 7;
    return fault.seed ^= fault.seed << 17;
}

/* The errno that this call of an operation fails with; 0: it goes through. */
static int failing(int op) {
    counts[op]++;
    if (!(fault.ops >> op & 1) || !fault.at) return 0;
    long now = ++seen;
    if (now < fault.at || (fault.times && now >= fault.at + fault.times)) return 0;
    counts[HITS]++;
    if (fault.kill == 1) kill(getpid(), SIGKILL);
    return fault.code;
}

#define MAY_FAIL(about, op, failed)                             \
    do {                                                        \
        int code_;                                              \
        if ((about) && (code_ = failing(op))) { errno = code_; return failed; } \
    } while (0)

/* How many of these bytes are to be written; -1: the write fails. */
static ssize_t allowed(int descriptor, size_t size) {
    if (!watched(descriptor)) return (ssize_t)size;
    int code = failing(WRITE);
    if (code) { errno = code; return -1; }
    if (fault.bytes >= 0) {
        long left = fault.bytes - written;
        counts[HITS] += (long)size > left;
        if (left <= 0 && size) { errno = fault.code; return -1; }
        if ((long)size > left) size = (size_t)left;
    }
    if (fault.cut && size > 1) {
        counts[HITS]++;
        size = 1 + draw() % size;
    }
    written += (long)size;
    counts[BYTES] += (long)size;
    return (ssize_t)size;
}

static void pause_for(long milliseconds) {
    struct timespec time = {milliseconds / 1000, milliseconds % 1000 * 1000000};
    if (!milliseconds) return;
    counts[HITS]++;
    nanosleep(&time, NULL);
}

static double between(struct timespec a, struct timespec b) {
    return 1e3 * (double)(b.tv_sec - a.tv_sec) + 1e-6 * (double)(b.tv_nsec - a.tv_nsec);
}

/* Whether the file or folder of a run that a path lies in, such as checkpoints/12, is not seen. */
static int stale(const char *path) {
    size_t length = strlen(fault.under), more = 0;
    char whole[PATH_MAX];
    struct stat found;
    struct timespec now;
    if (!fault.stale || strlen(path) <= length) return 0;
    for (int depth = 0; depth < 2 && path[length + more]; depth++)
        more += 1 + strcspn(path + length + more + 1, "/");
    snprintf(whole, sizeof whole, "%.*s", (int)(length + more), path);
    if (fstatat(AT_FDCWD, whole, &found, 0)) return 0;
    clock_gettime(CLOCK_REALTIME, &now);
    double age = between(found.st_ctim, fault.since);
    uint64_t hash = fault.seed;
    for (const char *c = whole + length; *c; c++)
        hash = (hash ^ (unsigned char)*c) * 1099511628211u;
    int hides = age > 0 && age < fault.stale && between(fault.since, now) < fault.stale &&
                (hash ^ hash >> 20 ^ hash >> 40) & 1;
    counts[HITS] += hides;
    return hides;
}

/* ---- Opening */

static int changes(int flags) { return (flags & O_ACCMODE) != O_RDONLY || flags & O_CREAT; }

#define OPENING(name, folder, declared, passed)                 \
    int name declared {                                         \
        mode_t mode = 0;                                        \
        if (flags & (O_CREAT | O_TMPFILE)) {                    \
            va_list rest;                                       \
            va_start(rest, flags);                              \
            mode = va_arg(rest, mode_t);                        \
            va_end(rest);                                       \
        }                                                       \
        static int (*real) declared;                            \
        if (!real) real = dlsym(RTLD_NEXT, #name);              \
        int about = watched_at(folder, path);                   \
        MAY_FAIL(about, OPEN, -1);                              \
        MAY_FAIL(about && changes(flags), CREATE, -1);          \
        if (about && !changes(flags) && stale(path)) { errno = ENOENT; return -1; } \
        return real passed;                                     \
    }

OPENING(open, AT_FDCWD, (const char *path, int flags, ...), (path, flags, mode))
OPENING(open64, AT_FDCWD, (const char *path, int flags, ...), (path, flags, mode))
OPENING(openat, folder, (int folder, const char *path, int flags, ...), (folder, path, flags, mode))
OPENING(openat64, folder, (int folder, const char *path, int flags, ...),
        (folder, path, flags, mode))

#undef __openat_2
int __openat_2(int folder, const char *path, int flags) { return openat(folder, path, flags); }

/* ---- Writing; a stream's own writes pass by PLT's back door, so that fwrite is caught itself */

ssize_t write(int descriptor, const void *data, size_t size) {
    REAL(ssize_t, write, int, const void *, size_t);
    ssize_t share = allowed(descriptor, size);
    return share < 0 ? -1 : real_write(descriptor, data, (size_t)share);
}

#define WRITING_AT(name, offset_type)                                               \
    ssize_t name(int descriptor, const void *data, size_t size, offset_type offset) { \
        REAL(ssize_t, name, int, const void *, size_t, offset_type);                \
        ssize_t share = allowed(descriptor, size);                                  \
        return share < 0 ? -1 : real_##name(descriptor, data, (size_t)share, offset); \
    }
WRITING_AT(pwrite, off_t)
WRITING_AT(pwrite64, off64_t)

ssize_t writev(int descriptor, const struct iovec *parts, int count) {
    REAL(ssize_t, writev, int, const struct iovec *, int);
    size_t size = 0;
    for (int i = 0; i < count; i++) size += parts[i].iov_len;
    ssize_t share = allowed(descriptor, size);
    if (share < 0) return -1;
    if ((size_t)share == size) return real_writev(descriptor, parts, count);
    while (count && !parts->iov_len) parts++, count--; /* of a short one the first part */
    REAL(ssize_t, write, int, const void *, size_t);
    size_t first = parts->iov_len;
    return real_write(descriptor, parts->iov_base, first < (size_t)share ? first : (size_t)share);
}

size_t fwrite(const void *data, size_t size, size_t count, FILE *stream) {
    REAL(size_t, fwrite, const void *, size_t, size_t, FILE *);
    int cut = fault.cut;
    fault.cut = 0; /* libc itself goes on behind a short write */
    ssize_t share = allowed(fileno(stream), size * count);
    fault.cut = cut;
    if (share < 0) return 0;
    size_t whole = size ? (size_t)share / size : 0;
    size_t done = real_fwrite(data, size, whole, stream);
    if (whole < count && size) errno = fault.code;
    return done;
}

ssize_t sendfile64(int to, int from, off64_t *at, size_t size) {
    REAL(ssize_t, sendfile64, int, int, off64_t *, size_t);
    ssize_t share = allowed(to, size);
    return share < 0 ? -1 : real_sendfile64(to, from, at, (size_t)share);
}

#define ON_A_FILE(name, op, declared, passed)                   \
    int name declared {                                         \
        static int (*real) declared;                            \
        if (!real) real = dlsym(RTLD_NEXT, #name);              \
        MAY_FAIL(watched(descriptor), op, -1);                  \
        return real passed;                                     \
    }
ON_A_FILE(fsync, FSYNC, (int descriptor), (descriptor))
ON_A_FILE(fdatasync, FSYNC, (int descriptor), (descriptor))
ON_A_FILE(ftruncate, WRITE, (int descriptor, off_t size), (descriptor, size))
ON_A_FILE(ftruncate64, WRITE, (int descriptor, off64_t size), (descriptor, size))

/* ---- Reading */

#define READING(name, declared, passed)                         \
    ssize_t name declared {                                     \
        static ssize_t (*real) declared;                        \
        if (!real) real = dlsym(RTLD_NEXT, #name);              \
        int about = watched(descriptor);                        \
        MAY_FAIL(about, READ, -1);                              \
        if (about) pause_for(fault.slow);                       \
        return real passed;                                     \
    }
READING(read, (int descriptor, void *data, size_t size), (descriptor, data, size))
READING(pread, (int descriptor, void *data, size_t size, off_t at), (descriptor, data, size, at))
READING(pread64, (int descriptor, void *data, size_t size, off64_t at),
        (descriptor, data, size, at))

#define LOOKING(name, folder, declared, passed)                 \
    int name declared {                                         \
        static int (*real) declared;                            \
        if (!real) real = dlsym(RTLD_NEXT, #name);              \
        int about = watched_at(folder, path);                   \
        MAY_FAIL(about, STAT, -1);                              \
        if (about && stale(path)) { errno = ENOENT; return -1; } \
        return real passed;                                     \
    }
struct dirent64 *readdir64(DIR *folder) {
    REAL(struct dirent64 *, readdir64, DIR *);
    char whole[PATH_MAX];
    struct dirent64 *found = real_readdir64(folder);
    while (found && fault.armed && fault.stale && link_of(dirfd(folder), whole, PATH_MAX - 300)) {
        snprintf(whole + strlen(whole), 300, "/%s", found->d_name);
        if (!below(whole) || !stale(whole)) break;
        found = real_readdir64(folder);
    }
    return found;
}

LOOKING(stat, AT_FDCWD, (const char *path, struct stat *out), (path, out))
LOOKING(stat64, AT_FDCWD, (const char *path, struct stat64 *out), (path, out))

/* ---- Names */

#define NAMING(name, op, folder, declared, passed)              \
    int name declared {                                         \
        static int (*real) declared;                            \
        if (!real) real = dlsym(RTLD_NEXT, #name);              \
        MAY_FAIL(watched_at(folder, path), op, -1);             \
        return real passed;                                     \
    }
NAMING(mkdir, MAKE, AT_FDCWD, (const char *path, mode_t mode), (path, mode))
NAMING(unlink, REMOVE, AT_FDCWD, (const char *path), (path))
NAMING(unlinkat, REMOVE, folder, (int folder, const char *path, int flags), (folder, path, flags))
NAMING(rmdir, REMOVE, AT_FDCWD, (const char *path), (path))

int rename(const char *from, const char *to) {
    REAL(int, rename, const char *, const char *);
    int about = watched_at(AT_FDCWD, to), code = about ? failing(RENAME) : 0;
    if (code && !fault.lost && !fault.kill) { errno = code; return -1; }
    if (about) pause_for(fault.before);
    int done = real_rename(from, to);
    if (about) pause_for(fault.after);
    if (code && fault.kill) kill(getpid(), SIGKILL);
    if (code && !done) { errno = code; return -1; }
    return done;
}

/* ---- The clock; Python's alone: waits of C++ end at the kernel's, which does not jump */

int clock_gettime(clockid_t which, struct timespec *out) {
    REAL(int, clock_gettime, clockid_t, struct timespec *);
    int done = real_clock_gettime(which, out);
    if (done || which != CLOCK_REALTIME || !fault.armed) return done;
    Dl_info caller;
    if (!dladdr(__builtin_return_address(0), &caller) || !strstr(caller.dli_fname, "python"))
        return 0;
    if (strstr(caller.dli_fname, "site-packages")) return 0;
    counts[CLOCK]++;
    if (!fault.back || ++seen < fault.at) return 0;
    counts[HITS]++;
    out->tv_sec -= fault.back;
    return 0;
}
