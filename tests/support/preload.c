/* Loaded before the C library: files of the embedded store that fail with EIO, and a wall clock that is wrong.
 *
 * RUNSPAN_TEST_FAULTS names a file that the test writes: the clock's offset in nanoseconds, and how many of a thousand
 * operations on files of the store fail.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define MAX_FILES 4096

static volatile struct { int64_t offset; int64_t permille; } *faults;
static char is_store[MAX_FILES];

#define REAL(result, name, ...) \
    static result (*real)(__VA_ARGS__); \
    if (!real) real = (result (*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name)

__attribute__((constructor)) static void map_faults(void) {
    const char *path = getenv("RUNSPAN_TEST_FAULTS");
    int file = path ? open(path, O_RDONLY) : -1;
    if (file < 0) return;
    void *content = mmap(NULL, sizeof *faults, PROT_READ, MAP_SHARED, file, 0);
    if (content != MAP_FAILED) faults = content;
    close(file);
}

static int opened(int file, const char *path) {
    if (file >= 0 && file < MAX_FILES) is_store[file] = strstr(path, "runspan.sqlite3") != NULL;
    return file;
}

static int fails(int file) {
    static __thread unsigned seed;
    if (!faults || !faults->permille || file < 0 || file >= MAX_FILES || !is_store[file]) return 0;
    if (!seed) seed = (unsigned)(uintptr_t)&seed ^ (unsigned)getpid();
    if (rand_r(&seed) % 1000 >= faults->permille) return 0;
    errno = EIO;
    return 1;
}

#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        REAL(int, name, const char *, int, ...); \
        va_list arguments; \
        va_start(arguments, flags); \
        mode_t mode = flags & O_CREAT ? va_arg(arguments, mode_t) : 0; \
        va_end(arguments); \
        return opened(real(path, flags, mode), path); \
    }
OPEN(open)
OPEN(open64)

#define FAILING(result, name, parameters, file, ...) \
    result name parameters { \
        static result (*real) parameters; \
        if (!real) real = (result (*) parameters)dlsym(RTLD_NEXT, #name); \
        return fails(file) ? -1 : real(__VA_ARGS__); \
    }
FAILING(ssize_t, read, (int file, void *buffer, size_t size), file, file, buffer, size)
FAILING(ssize_t, write, (int file, const void *buffer, size_t size), file, file, buffer, size)
FAILING(ssize_t, pread, (int file, void *buffer, size_t size, off_t at), file, file, buffer, size, at)
FAILING(ssize_t, pread64, (int file, void *buffer, size_t size, off64_t at), file, file, buffer, size, at)
FAILING(ssize_t, pwrite, (int file, const void *buffer, size_t size, off_t at), file, file, buffer, size, at)
FAILING(ssize_t, pwrite64, (int file, const void *buffer, size_t size, off64_t at), file, file, buffer, size, at)
FAILING(int, ftruncate, (int file, off_t size), file, file, size)
FAILING(int, ftruncate64, (int file, off64_t size), file, file, size)
FAILING(int, fsync, (int file), file, file)
FAILING(int, fdatasync, (int file), file, file)

int clock_gettime(clockid_t clock, struct timespec *now) {
    REAL(int, clock_gettime, clockid_t, struct timespec *);
    int result = real(clock, now);
    if (result == 0 && faults && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) {
        int64_t time = now->tv_sec * 1000000000LL + now->tv_nsec + faults->offset;
        now->tv_sec = time / 1000000000LL;
        now->tv_nsec = time % 1000000000LL;
    }
    return result;
}
