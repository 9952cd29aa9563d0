// SPDX-License-Identifier: Apache-2.0
/*
 * Descriptors of a task as /proc shows them.  Names are looked up from the two directories, which
 * takes half the time of whole paths: the task is found, and the right to look is checked, once.
 */
#include "seam_internal.h"

#include <fcntl.h>
#include <limits.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define LEAST_ROOM (2 * PATH_MAX) /* for a link and a text */

static int open_directory(int pid, const char *name)
{
	char path[64];
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/%s", pid, name);
	fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

static void stat_at(int links, const char *name, struct seam_fd *one)
{
	struct stat found;

	one->error = fstatat(links, name, &found, 0) ? -errno : 0;
	if (one->error)
		return;
	one->mode = found.st_mode;
	one->dev = found.st_dev;
	one->ino = found.st_ino;
	one->rdev = found.st_rdev;
	one->size = (uint64_t)found.st_size;
	one->nlink = found.st_nlink;
	one->uid = found.st_uid;
	one->gid = found.st_gid;
	one->blksize = (uint64_t)found.st_blksize;
}

/* Each thread has a share of the descriptors and of the room. */
struct look {
	int links, infos;
	struct seam_fd *fds;
	size_t count, size;
	char *room;
	unsigned int threads;
	const struct seam_looked *before;
	int results[MAX_THREADS];
};

static int by_number(const void *one, const void *other)
{
	int first = ((const struct seam_fd *)one)->fd, second = ((const struct seam_fd *)other)->fd;

	return (first > second) - (first < second);
}

static size_t text_size(const struct seam_fd *one)
{
	return (one->link_size > 0 ? (size_t)one->link_size : 0) +
	       (one->info_size > 0 ? (size_t)one->info_size : 0);
}

static int is_as_before(const struct look *look, const struct seam_fd *one)
{
	const struct seam_looked *before = look->before;
	const struct seam_fd *old = NULL;

	if (before)
		old = bsearch(one, before->fds, before->count, sizeof(*one), by_number);
	return old && old->link_size == one->link_size && old->info_size == one->info_size &&
	       old->error == one->error &&
	       !memcmp(&old->mode, &one->mode, sizeof(*one) - offsetof(struct seam_fd, mode)) &&
	       !memcmp(before->room + old->at, look->room + one->at, text_size(one));
}

static int look_at_one(const struct look *look, struct seam_fd *one, size_t at, size_t end)
{
	ssize_t length;
	int64_t text;
	char name[16];

	if (end - at < LEAST_ROOM)
		return -ENOBUFS;
	snprintf(name, sizeof(name), "%d", one->fd);
	one->at = at;
	length = readlinkat(look->links, name, look->room + at, PATH_MAX);
	one->link_size = length < 0 ? -errno : (int)length;
	if (length > 0)
		at += (size_t)length;
	stat_at(look->links, name, one);
	text = read_text(look->infos, name, look->room + at, end - at);
	one->info_size = (int)text;
	if (text == (int64_t)(end - at))
		return -ENOBUFS;
	one->same = is_as_before(look, one);
	return 0;
}

static void look_at_share(void *job, unsigned int index)
{
	struct look *look = job;
	size_t i = look->count * index / look->threads;
	size_t last = look->count * (index + 1) / look->threads;
	size_t at = look->size / look->threads * index, end = at + look->size / look->threads;

	for (; i < last && !look->results[index]; i++) {
		struct seam_fd *one = look->fds + i;

		look->results[index] = look_at_one(look, one, at, end);
		at = one->at + text_size(one);
	}
}

int seam_look_fds(int pid, struct seam_fd *fds, size_t count, char *room, size_t size,
		  unsigned int threads, const struct seam_looked *before)
{
	struct look look = { .fds = fds, .count = count, .room = room, .size = size,
			     .before = before,
			     .threads = threads < 1 || threads > MAX_THREADS ? 1 : threads };
	int result = 0;

	look.links = open_directory(pid, "fd");
	if (look.links < 0)
		return look.links;
	look.infos = open_directory(pid, "fdinfo");
	if (look.infos < 0) {
		close(look.links);
		return look.infos;
	}
	if (look.threads == 1)
		look_at_share(&look, 0);
	else
		result = run_threads(look.threads, look_at_share, &look);
	for (unsigned int i = 0; i < look.threads && !result; i++)
		result = look.results[i];
	close(look.links);
	close(look.infos);
	return result;
}
