// SPDX-License-Identifier: Apache-2.0
/*
 * Questions to descriptors of a task, asked of copies that share their descriptions.  A copy lives
 * as long as its questions take.
 */
#include "seam_internal.h"

#include <fcntl.h>
#include <linux/openat2.h>
#include <linux/kcmp.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#ifndef POLLRDHUP
#define POLLRDHUP 0x2000
#endif

enum call { OPTION, SOCKNAME, PEERNAME, POLL, FCNTL, FCNTL_BYTES, IOCTL, PLACE, PIPE, TARGET };

struct slot {
	int result, size;
	char bytes[];
};

struct asking {
	int pid, pidfd, root;
	struct seam_asked *rows;
	size_t count;
	char *room;
	unsigned int threads;
};

/* One of those that ask at a time, and a pipe for what others hold. */
struct asker {
	const struct asking *asking;
	int copy[2];
};

static int place_of(int root, const char *path, struct slot *slot)
{
	struct open_how how = { .flags = O_PATH | O_NOFOLLOW | O_CLOEXEC,
				.resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS };
	struct stat found;
	uint64_t place[2];
	int fd;

	if (!path)
		return -ENOENT;
	fd = (int)syscall(SYS_openat2, root, path, &how, sizeof(how));
	if (fd < 0)
		return -errno;
	if (fstat(fd, &found)) {
		close(fd);
		return -EIO;
	}
	close(fd);
	place[0] = found.st_dev;
	place[1] = found.st_ino;
	memcpy(slot->bytes, place, sizeof(place));
	slot->size = sizeof(place);
	return 0;
}

static int option_of(int fd, const struct seam_question *question, struct slot *slot)
{
	socklen_t size = (socklen_t)question->size;

	if (getsockopt(fd, question->first, question->second, size ? slot->bytes : NULL, &size))
		return -errno;
	slot->size = question->size ? (int)size : 0;
	return (int)size;
}

static int name_of(int fd, int peer, const struct seam_question *question, struct slot *slot)
{
	socklen_t size = (socklen_t)question->size;

	if ((peer ? getpeername : getsockname)(fd, (struct sockaddr *)slot->bytes, &size))
		return -errno;
	if (size > (socklen_t)question->size)
		return -ERANGE;
	slot->size = (int)size;
	return 0;
}

static int events_of(int fd)
{
	struct pollfd one = { .fd = fd, .events = POLLIN | POLLPRI | POLLOUT | POLLRDHUP };

	return poll(&one, 1, 0) < 0 ? -errno : one.revents;
}

static void drop_copy(struct asker *asker)
{
	if (asker->copy[0] >= 0) {
		close(asker->copy[0]);
		close(asker->copy[1]);
	}
	asker->copy[0] = asker->copy[1] = -1;
}

/* Each piece behind its length; read(2) ends where a packet does, and takes a stream at once. */
static int copied_of(struct asker *asker, int total, const struct seam_question *question,
		     struct slot *slot)
{
	int32_t got;

	for (int left = total; left > 0; left -= got) {
		char *at = slot->bytes + slot->size;
		ssize_t room = question->size - slot->size - (ssize_t)sizeof(got);

		got = room > 0 ? (int32_t)read(asker->copy[0], at + sizeof(got), (size_t)room) : 0;
		if (got <= 0)
			return -ERANGE;
		memcpy(at, &got, sizeof(got));
		slot->size += (int)sizeof(got) + got;
	}
	return total;
}

/* What is queued stays there.  -ERANGE: it is too much for the room, or for a copy. */
static int pipe_of(struct asker *asker, int fd, const struct seam_question *question,
		   struct slot *slot)
{
	int queued, result;
	ssize_t copied;

	if (ioctl(fd, FIONREAD, &queued))
		return -errno;
	if (!queued)
		return 0;
	if (queued > question->size)
		return -ERANGE;
	if (asker->copy[0] < 0 && pipe2(asker->copy, O_CLOEXEC | O_NONBLOCK))
		return -errno;
	copied = tee(fd, asker->copy[1], (size_t)queued, SPLICE_F_NONBLOCK);
	if (copied < 0)
		return -errno;
	result = copied_of(asker, (int)copied, question, slot);
	if (result != queued) {
		drop_copy(asker);
		slot->size = 0;
		return -ERANGE;
	}
	return result;
}

static int target_of(int pid, int epoll, const struct seam_question *question)
{
	struct kcmp_epoll_slot slot = { .efd = (__u32)epoll, .tfd = (__u32)question->first,
					.toff = (__u32)question->second };

	return seam_kcmp(pid, pid, KCMP_EPOLL_TFD, slot.tfd, (uintptr_t)&slot) != 0;
}

static int ask(struct asker *asker, const struct seam_asked *row, int fd,
	       const struct seam_question *question, struct slot *slot)
{
	int result;

	slot->size = 0;
	memset(slot->bytes, 0, ((size_t)question->size + 7) & ~(size_t)7);
	switch ((enum call)question->call) {
	case OPTION:
		return option_of(fd, question, slot);
	case SOCKNAME:
		return name_of(fd, 0, question, slot);
	case PEERNAME:
		return name_of(fd, 1, question, slot);
	case POLL:
		return events_of(fd);
	case FCNTL:
		result = fcntl(fd, question->first, 0);
		return result < 0 ? -errno : result;
	case FCNTL_BYTES:
		slot->size = question->size;
		return fcntl(fd, question->first, slot->bytes) < 0 ? -errno : 0;
	case IOCTL:
		slot->size = question->size;
		return ioctl(fd, (unsigned int)question->first, slot->bytes) < 0 ? -errno : 0;
	case PLACE:
		return place_of(asker->asking->root, row->path, slot);
	case PIPE:
		return pipe_of(asker, fd, question, slot);
	case TARGET:
		return target_of(asker->asking->pid, row->fd, question);
	}
	return -ENOSYS;
}

/* An error that only says that there is no such thing is an answer like others. */
static int is_clear(const struct seam_question *question, int result)
{
	switch ((enum call)question->call) {
	case OPTION:
		return result >= 0 ? result == 0 || question->size :
				     result == -ENOPROTOOPT || result == -EOPNOTSUPP ||
					     result == -EINVAL || result == -ENOTCONN;
	case PEERNAME:
		return result != -ERANGE;
	case FCNTL_BYTES:
		return !result || result == -EINVAL;
	case PIPE: /* of a write end it is not told */
		return result >= 0 || result == -EBADF || result == -ERANGE;
	default:
		return result >= 0;
	}
}

static void ask_one(struct asker *asker, struct seam_asked *row)
{
	int fd = seam_pidfd_getfd(asker->asking->pidfd, row->fd);
	char *at = asker->asking->room + row->at;

	row->unclear = fd < 0;
	for (size_t i = 0; i < row->count && fd >= 0; i++) {
		const struct seam_question *question = row->questions + i;
		struct slot *slot = (struct slot *)at;

		slot->result = ask(asker, row, fd, question, slot);
		row->unclear |= !is_clear(question, slot->result);
		at += sizeof(*slot) + (((size_t)question->size + 7) & ~(size_t)7);
	}
	if (fd >= 0)
		close(fd);
}

static void ask_share(void *job, unsigned int index)
{
	const struct asking *asking = job;
	struct asker asker = { .asking = asking, .copy = { -1, -1 } };
	size_t i = asking->count * index / asking->threads;
	size_t last = asking->count * (index + 1) / asking->threads;

	for (; i < last; i++)
		ask_one(&asker, asking->rows + i);
	drop_copy(&asker);
}

int seam_ask_fds(int pid, int pidfd, int root, struct seam_asked *rows, size_t count, char *room,
		 unsigned int threads)
{
	struct asking asking = { .pid = pid, .pidfd = pidfd, .root = root, .rows = rows, .count = count,
				 .room = room,
				 .threads = threads < 1 || threads > MAX_THREADS ? 1 : threads };

	if (asking.threads > 1)
		return run_threads(asking.threads, ask_share, &asking);
	ask_share(&asking, 0);
	return 0;
}

struct order {
	const int *pids, *fds;
	int error;
};

static int compare_files(const void *one, const void *other, void *argument)
{
	struct order *order = argument;
	int i = *(const int *)one, j = *(const int *)other;
	int found = seam_kcmp(order->pids[i], order->pids[j], KCMP_FILE, (uint64_t)order->fds[i],
			      (uint64_t)order->fds[j]);

	if (found < 0 || found > 2)
		order->error = found < 0 ? found : -EINVAL;
	return found == 1 ? -1 : found == 2;
}

int seam_order_files(const int *pids, const int *fds, size_t count, int *ranks)
{
	struct order order = { .pids = pids, .fds = fds };
	int *indices = malloc((count + 1) * sizeof(*indices));

	if (!indices)
		return -ENOMEM;
	for (size_t i = 0; i < count; i++)
		indices[i] = (int)i;
	qsort_r(indices, count, sizeof(*indices), compare_files, &order);
	for (size_t i = 0, rank = 0; i < count; i++) {
		if (i && compare_files(indices + i - 1, indices + i, &order))
			rank++;
		ranks[indices[i]] = (int)rank;
	}
	free(indices);
	return order.error;
}
