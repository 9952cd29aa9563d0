/* SPDX-License-Identifier: Apache-2.0 */
/*
 * System calls for programs without a libc: each returns a result or -errno.
 *
 * Only types of the kernel's own headers; only calls that every architecture
 * has (openat, ppoll, clone, ... and not open, poll, fork).
 */
#ifndef TORPOR_SYS_H
#define TORPOR_SYS_H

#include <asm/unistd.h>
#include <linux/errno.h>
#include <linux/fcntl.h>
#include <linux/types.h>
#include <stddef.h>
#include <stdint.h>

#include "torpor/arch.h"

#define SYS0(n) torpor_syscall6((n), 0, 0, 0, 0, 0, 0)
#define SYS1(n, a) torpor_syscall6((n), (long)(a), 0, 0, 0, 0, 0)
#define SYS2(n, a, b) torpor_syscall6((n), (long)(a), (long)(b), 0, 0, 0, 0)
#define SYS3(n, a, b, c) torpor_syscall6((n), (long)(a), (long)(b), (long)(c), 0, 0, 0)
#define SYS4(n, a, b, c, d)                                                                        \
	torpor_syscall6((n), (long)(a), (long)(b), (long)(c), (long)(d), 0, 0)
#define SYS5(n, a, b, c, d, e)                                                                     \
	torpor_syscall6((n), (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), 0)
#define SYS6(n, a, b, c, d, e, f)                                                                  \
	torpor_syscall6((n), (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), (long)(f))

#define SYS_WNOHANG 1
#define SYS_SIGSET_BYTES 8

/* The kernel's struct __kernel_timespec; <linux/time_types.h> is not on old systems. */
struct sys_timespec {
	int64_t seconds;
	int64_t nanoseconds;
};

struct sys_pollfd {
	int fd;
	short events;
	short revents;
};

_Static_assert(sizeof(struct sys_timespec) == 16, "timespec");
_Static_assert(sizeof(struct sys_pollfd) == 8, "pollfd");

#define SYS_POLLIN 0x001
#define SYS_POLLERR 0x008
#define SYS_POLLHUP 0x010

static inline long sys_openat(int dir, const char *path, int flags, int mode)
{
	return SYS4(__NR_openat, dir, path, flags, mode);
}

static inline long sys_close(int fd)
{
	return SYS1(__NR_close, fd);
}

static inline long sys_read(int fd, void *buffer, size_t bytes)
{
	return SYS3(__NR_read, fd, buffer, bytes);
}

static inline long sys_write(int fd, const void *buffer, size_t bytes)
{
	return SYS3(__NR_write, fd, buffer, bytes);
}

/* F_OK: does the path exist? */
static inline int sys_exists(const char *path)
{
	return SYS3(__NR_faccessat, AT_FDCWD, path, 0) == 0;
}

static inline long sys_wait4(long pid, int *status, int options)
{
	return SYS4(__NR_wait4, pid, status, options, NULL);
}

/* The kernel leaves in *timeout what was left of it. */
static inline long sys_ppoll(struct sys_pollfd *fds, size_t count, struct sys_timespec *timeout)
{
	return SYS5(__NR_ppoll, fds, count, timeout, NULL, SYS_SIGSET_BYTES);
}

#endif
