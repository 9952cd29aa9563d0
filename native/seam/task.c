// SPDX-License-Identifier: Apache-2.0
/* What can be asked about another task without stopping it. */
#include "seam_internal.h"

#include <sys/socket.h>
#include <sys/syscall.h>

#define PROCESS_MRELEASE 448 /* Linux 5.15 */

int seam_robust_list(int tid, uint64_t *head, uint64_t *length)
{
	return syscall(SYS_get_robust_list, tid, head, length) < 0 ? -errno : 0;
}

int seam_pidfd_open(int pid, int flags)
{
	long fd = syscall(SYS_pidfd_open, pid, flags);

	return fd < 0 ? -errno : (int)fd;
}

int seam_pidfd_getfd(int pidfd, int fd)
{
	long copy = syscall(SYS_pidfd_getfd, pidfd, fd, 0);

	return copy < 0 ? -errno : (int)copy;
}

int seam_kcmp(int pid1, int pid2, int type, uint64_t index1, uint64_t index2)
{
	long order = syscall(SYS_kcmp, pid1, pid2, type, index1, index2);

	return order < 0 ? -errno : (int)order;
}

int seam_ioprio(int tid)
{
	long value = syscall(SYS_ioprio_get, 1, tid); /* IOPRIO_WHO_PROCESS */

	return value < 0 ? -errno : (int)value;
}

void seam_int_options(int fd, const int *wanted, size_t count, int *values, int *sizes)
{
	for (size_t i = 0; i < count; i++) {
		socklen_t size = sizeof(*values);

		values[i] = 0;
		if (getsockopt(fd, wanted[2 * i], wanted[2 * i + 1], values + i, &size))
			sizes[i] = -errno;
		else
			sizes[i] = (int)size;
	}
}

/* Free the private memory of a task that is about to exit, in our time and not in its own. */
int seam_release_memory(int pid)
{
	int fd = seam_pidfd_open(pid, 0), result;

	if (fd < 0)
		return fd;
	result = syscall(PROCESS_MRELEASE, fd, 0) ? -errno : 0;
	close(fd);
	return result;
}
