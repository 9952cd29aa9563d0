/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A random address space in a window of its own, and children that go on changing it: anonymous and
 * shared memory, memfds, files, deleted files, System V segments, cut, moved, advised, locked.
 * The seed is the second argument; the test compares every byte.
 */
#include "memory_base.h"
#include <sys/ipc.h>
#include <sys/shm.h>

#define WINDOW ((byte *)0x1000000000)
#define SLOTS 40
#define SLOT (64 * PAGE)
#define LONG 48 /* pages of every object */

static uint32_t state;
static int memory;
static byte *segments[3];
static int files[4], segment_id;

static uint32_t pick(uint32_t below)
{
	state = state * 1664525 + 1013904223;
	return (state >> 8) % below;
}

static byte *slot(void)
{
	return WINDOW + pick(SLOTS) * SLOT;
}

/* Through /proc/self/mem: whatever the protection is. */
static void touch(byte *at, int pages)
{
	byte page[PAGE];

	for (int i = 0; i < pages; i++) {
		memset(page, 0, PAGE);
		fill(page + pick(PAGE - 64), 64, state);
		(void)!pwrite(memory, page, PAGE, (off_t)(at + pick(LONG) * PAGE));
	}
}

static void place(void)
{
	const int prots[] = { PROT_NONE, PROT_READ, RW, RW, RW, PROT_READ | PROT_EXEC };
	int prot = prots[pick(6)];
	long pages = 1 + pick(LONG), from = pick(LONG - pages + 1);
	byte *at = slot() + pick(64 - pages + 1) * PAGE;
	int what = pick(8), flags = 0;

	if (what < 3) {
		flags = pick(4) ? 0 : MAP_NORESERVE;
		mmap(at, pages * PAGE, prot, ANON | MAP_FIXED | flags, -1, 0);
	} else if (what == 3) {
		(void)!mremap(segments[pick(3)] + from * PAGE, 0, pages * PAGE,
			      MREMAP_MAYMOVE | MREMAP_FIXED, at);
		mprotect(at, pages * PAGE, prot);
	} else if (what == 4) {
		byte *top = slot();

		munmap(top, SLOT);
		(void)!shmat(segment_id, top, pick(3) ? 0 : SHM_RDONLY);
	} else {
		flags = pick(2) ? MAP_SHARED : MAP_PRIVATE;
		mmap(at, pages * PAGE, prot, flags | MAP_FIXED, files[pick(4)], from * PAGE);
	}
	touch(at, 1 + pick(6));
}

static void change(void)
{
	const int advices[] = { MADV_DONTNEED, MADV_SEQUENTIAL, MADV_RANDOM, MADV_DONTDUMP,
				MADV_DONTFORK, MADV_WIPEONFORK, MADV_MERGEABLE, MADV_NOHUGEPAGE,
				102 /* MADV_GUARD_INSTALL */, MADV_HUGEPAGE };
	const int prots[] = { PROT_NONE, PROT_READ, RW };
	byte *at = slot() + pick(LONG) * PAGE, *to = slot() + pick(16) * PAGE;
	size_t size = (1 + pick(12)) * PAGE;

	switch (pick(7)) {
	case 0:
		munmap(at, size);
		break;
	case 1:
		mprotect(at, size, prots[pick(3)]);
		break;
	case 2:
		if (at + size <= to || to + size <= at)
			(void)!mremap(at, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, to);
		break;
	case 3:
		mlock(at, PAGE);
		break;
	case 4:
		madvise(at, size, advices[pick(10)]);
		break;
	default:
		touch(at, 3);
	}
}

int main(int argc, char **argv)
{
	begin(argv);
	state = atoi(argv[2]) * 2654435761u + 1;
	memory = open("/proc/self/mem", O_RDWR);
	for (int i = 0; i < 3; i++)
		segments[i] = map(LONG * PAGE, RW, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	files[0] = memfd_create("first", 0);
	CHECK(ftruncate(files[0], LONG * PAGE) == 0);
	files[1] = memfd_create("short", MFD_ALLOW_SEALING);
	CHECK(ftruncate(files[1], 20 * PAGE) == 0);
	files[2] = file("file", LONG * PAGE, 1);
	files[3] = file("gone", LONG * PAGE, 2);
	CHECK(unlink(path_of("gone")) == 0);
	segment_id = shmget(IPC_PRIVATE, LONG * PAGE, 0600);
	for (int i = 0; i < 30; i++)
		place();
	for (int i = 0; i < 40; i++)
		change();
	/* what is mapped of these must stand alone now */
	close(files[pick(4)]);
	if (pick(2))
		CHECK(munmap(segments[0], LONG * PAGE) == 0);
	int children = pick(4), ends[2];
	char done;

	CHECK(pipe(ends) == 0);
	for (int i = 0; i < children; i++) {
		if (fork())
			continue;
		close(memory);
		memory = open("/proc/self/mem", O_RDWR);
		state += 77 * (i + 1);
		for (int j = 0; j < 25; j++)
			pick(3) ? change() : place();
		if (i == 0 && pick(2) && !fork()) {
			close(memory);
			memory = open("/proc/self/mem", O_RDWR);
			for (int j = 0; j < 15; j++)
				change();
		}
		close(memory);
		CHECK(write(ends[1], "x", 1) == 1);
		for (;;)
			pause();
	}
	for (int i = 0; i < children; i++)
		CHECK(read(ends[0], &done, 1) == 1);
	close(ends[0]);
	close(ends[1]);
	close(memory);
	rest(100); /* grandchildren */
	ready();
	await_go();
	shmctl(segment_id, IPC_RMID, NULL);
	good();
	return 0;
}
