/* SPDX-License-Identifier: Apache-2.0 */
/* Rings of io_setup: empty, with events that nobody took, one of several pages. */
#include "core_base.h"
#include <linux/aio_abi.h>
#include <sys/syscall.h>

static aio_context_t set_up(unsigned requests)
{
	aio_context_t made = 0;

	CHECK(!syscall(SYS_io_setup, requests, &made));
	return made;
}

static void submit(aio_context_t ring, int fd, uint64_t data, void *room, size_t size, long at)
{
	struct iocb one = { .aio_data = data, .aio_fildes = fd, .aio_buf = (uintptr_t)room,
			    .aio_nbytes = size, .aio_offset = at };
	struct iocb *list = &one;

	SAME(syscall(SYS_io_submit, ring, 1, &list), 1);
}

static void take(aio_context_t ring, uint64_t first, int count)
{
	struct timespec patience = { 5, 0 };

	for (int i = 0; i < count; i++) {
		struct io_event event;

		SAME(syscall(SYS_io_getevents, ring, 1, 1, &event, &patience), 1);
		SAME(event.data, first + i);
		SAME(event.res, 4);
	}
}

static void is_empty(aio_context_t ring)
{
	struct timespec none = { 0, 0 };
	struct io_event event;

	SAME(syscall(SYS_io_getevents, ring, 0, 1, &event, &none), 0);
}

int main(int argc, char **argv)
{
	char path[4096], room[8];

	begin(argv);
	(void)argc;
	snprintf(path, sizeof(path), "%s/data", folder);
	int fd = open(path, O_RDWR | O_CREAT, 0600);

	CHECK(fd >= 0 && write(fd, "somedata", 8) == 8);
	aio_context_t fresh = set_up(1), used = set_up(10), large = set_up(500), full = set_up(20);
	unsigned *header = (unsigned *)full;

	for (int i = 0; i < 7; i++)
		submit(used, fd, i, room, 4, 0);
	take(used, 0, 4);
	for (int i = 0; i < 400; i++)
		submit(large, fd, i, room, 4, 4);
	take(large, 0, 390);
	for (int i = 0; i < 110; i++) { /* around the end of the ring */
		submit(full, fd, i, room, 4, 4);
		take(full, i, 1);
	}
	for (int i = 0; i < 40; i++)
		submit(full, fd, i, room, 4, 4);
	CHECK(header[2] > header[3]);
	ready();
	await_go();
	is_empty(fresh);
	submit(fresh, fd, 9, room, 4, 4);
	take(fresh, 9, 1);
	CHECK(!memcmp(room, "data", 4));
	take(used, 4, 3);
	is_empty(used);
	take(large, 390, 10);
	is_empty(large);
	take(full, 0, 40);
	for (int i = 0; i < 1000; i++) {
		submit(full, fd, i, room, 4, 0);
		take(full, i, 1);
	}
	is_empty(full);
	CHECK(!syscall(SYS_io_destroy, full));
	CHECK(!syscall(SYS_io_destroy, large));
	good();
	return 0;
}
