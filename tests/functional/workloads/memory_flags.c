/* SPDX-License-Identifier: Apache-2.0 */
/* What mmap, mlock and madvise leave behind in areas. */
#include "memory_base.h"
#include <sys/resource.h>

#define SIZE (16 * PAGE)
#define GUARD_INSTALL 102
#ifndef MLOCK_ONFAULT
#define MLOCK_ONFAULT 1
#endif
#define LOCK_ONFAULT 4

/* A stack of one's own that grows, with its guard; grown by a fault. */
static void grows_down(void)
{
	byte *space = room(64 * PAGE) + 32 * PAGE;

	map_at(space, 2 * PAGE, RW, ANON | MAP_GROWSDOWN, -1, 0);
	fill(space, 2 * PAGE, 1);
	space[-10] = 10; /* grows by a page */
	byte *other = room(64 * PAGE) + 32 * PAGE;

	map_at(other, PAGE, RW, ANON | MAP_GROWSDOWN, -1, 0);
	CHECK(mprotect(other, PAGE, PROT_READ) == 0);
	byte *near = room(64 * PAGE) + 32 * PAGE; /* neighbours, where it may not grow any more */

	map_at(near + PAGE, PAGE, RW, ANON | MAP_GROWSDOWN, -1, 0);
	map_at(near, PAGE, RW, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	map_at(near + 2 * PAGE, PAGE, PROT_NONE, ANON, -1, 0);
	fill(near, 2 * PAGE, 4);
	ready();
	await_go();
	same("stack", space, 2 * PAGE, 1);
	same("neighbours", near, 2 * PAGE, 4);
	CHECK(space[-10] == 10 && space[-20] == 0);
	space[-(long)PAGE - 10] = 1; /* and goes on growing */
}

static void locked(int how)
{
	byte *at = map(SIZE, RW, ANON, -1, 0);

	if (how == 0)
		CHECK(mlock(at + PAGE, PAGE) == 0);
	if (how == 1)
		CHECK(syscall(SYS_mlock2, at + PAGE, 4 * PAGE, MLOCK_ONFAULT) == 0);
	at[PAGE] = 1;
	if (how == 2)
		CHECK(mlockall(MCL_CURRENT) == 0);
	if (how == 3)
		CHECK(mlockall(MCL_CURRENT | MCL_FUTURE) == 0);
	if (how == 4)
		CHECK(syscall(SYS_mlockall, MCL_CURRENT | MCL_FUTURE | LOCK_ONFAULT) == 0);
	byte *later = map(SIZE, RW, ANON, -1, 0);

	later[0] = 1;
	unsigned char in[16];

	ready();
	await_go();
	CHECK(at[PAGE] == 1 && later[0] == 1);
	if (how == 0 || how == 2 || how == 3) {
		CHECK(mincore(at, SIZE, in) == 0);
		CHECK(in[1] & 1);
	}
	byte *after = map(SIZE, RW, ANON, -1, 0);

	CHECK(mincore(after, SIZE, in) == 0);
	SAME(in[3] & 1, how == 3);
	if (how == 4) {
		char line[300];
		int is_locked = 0, ours = 0;
		unsigned long start, end;
		FILE *maps = fopen("/proc/self/smaps", "r");

		while (fgets(line, sizeof(line), maps)) {
			if (sscanf(line, "%lx-%lx ", &start, &end) == 2 && strstr(line, "p "))
				ours = start <= (unsigned long)after && (unsigned long)after < end;
			if (ours && strstr(line, "VmFlags"))
				is_locked = strstr(line, " lo") != NULL;
		}
		CHECK(is_locked);
	}
}

static void mlock_plain(void)
{
	locked(0);
}
static void mlock_onfault(void)
{
	locked(1);
}
static void mlockall_current(void)
{
	locked(2);
}
static void mlockall_future(void)
{
	locked(3);
}
static void mlockall_onfault(void)
{
	locked(4);
}

static void advice(void)
{
	const int all[] = { MADV_SEQUENTIAL, MADV_RANDOM, MADV_DONTFORK, MADV_DONTDUMP, MADV_WIPEONFORK,
			    MADV_MERGEABLE, MADV_HUGEPAGE, MADV_NOHUGEPAGE };
	byte *at[8];

	for (int i = 0; i < 8; i++) {
		at[i] = map(SIZE, RW, ANON, -1, 0);
		fill(at[i], SIZE, i);
		CHECK(madvise(at[i] + PAGE, 8 * PAGE, all[i]) == 0);
	}
	byte *several = map(SIZE, RW, ANON, -1, 0);

	CHECK(madvise(several, SIZE, MADV_WIPEONFORK) == 0);
	CHECK(madvise(several, SIZE, MADV_DONTDUMP) == 0);
	CHECK(madvise(several, SIZE, MADV_DONTFORK) == 0);
	int fd = file("advised", SIZE, 20);
	byte *mapped = map(SIZE, PROT_READ, MAP_PRIVATE, fd, 0);

	CHECK(madvise(mapped, SIZE, MADV_RANDOM) == 0);
	ready();
	await_go();
	for (int i = 0; i < 8; i++)
		same("advised", at[i], SIZE, i);
	pid_t child = fork();

	if (!child) {
		byte zero[8 * PAGE] = { 0 };

		_exit(memcmp(at[4] + PAGE, zero, 8 * PAGE) != 0);
	}
	ended_well(child);
}

/* A child made before and after the advice; what was wiped in it it has written since. */
static void advice_of_child(void)
{
	byte *wiped = map(SIZE, RW, ANON, -1, 0), *gone = map(SIZE, RW, ANON, -1, 0);

	fill(wiped, SIZE, 1);
	fill(gone, SIZE, 2);
	CHECK(madvise(wiped, SIZE, MADV_WIPEONFORK) == 0);
	CHECK(madvise(gone, SIZE, MADV_DONTFORK) == 0);
	pid_t child = fork();

	if (!child) {
		fill(wiped + PAGE, PAGE, 3);
		while (!asked())
			rest(5);
		same("child", wiped + PAGE, PAGE, 3);
		CHECK(wiped[0] == 0 && wiped[2 * PAGE] == 0);
		unsigned char in[16];
		CHECK(mincore(gone, SIZE, in) < 0 && errno == ENOMEM);
		_exit(0);
	}
	ready();
	await_go();
	same("wiped on fork", wiped, SIZE, 1);
	same("not forked", gone, SIZE, 2);
	ended_well(child);
}

static void freed(void)
{
	byte *at = map(SIZE, RW, ANON, -1, 0), *cold = map(SIZE, RW, ANON, -1, 0);
	byte *dropped = map(SIZE, RW, ANON, -1, 0);

	fill(at, SIZE, 1);
	fill(cold, SIZE, 2);
	fill(dropped, SIZE, 3);
	CHECK(madvise(at, 4 * PAGE, MADV_FREE) == 0);
	CHECK(madvise(cold, SIZE, 20 /* MADV_COLD */) == 0);
	CHECK(madvise(cold + PAGE, PAGE, 21 /* MADV_PAGEOUT */) == 0);
	CHECK(madvise(dropped + PAGE, 4 * PAGE, MADV_DONTNEED) == 0);
	byte copy[16 * PAGE];

	fill(copy, SIZE, 1);
	ready();
	await_go();
	for (int i = 0; i < 4; i++) /* the old content, or none */
		CHECK(at[i * PAGE] == 0 || !memcmp(at + i * PAGE, copy + i * PAGE, PAGE));
	CHECK(!memcmp(at + 4 * PAGE, copy + 4 * PAGE, 12 * PAGE));
	same("cold", cold, SIZE, 2);
	same("kept", dropped, PAGE, 3);
	CHECK(dropped[PAGE] == 0 && dropped[4 * PAGE] == 0);
}

static int guarded(byte *at)
{
	int ends[2];
	char one = 1;

	CHECK(pipe(ends) == 0);
	int got = write(ends[1], at, 1);
	int is = got < 0 && errno == EFAULT;

	(void)one;
	close(ends[0]);
	close(ends[1]);
	return is;
}

/* Guard regions: pages that fault although the area may be read. */
static void guards(void)
{
	byte *at = map(SIZE, RW, ANON, -1, 0);

	fill(at, SIZE, 1);
	if (madvise(at + 2 * PAGE, PAGE, GUARD_INSTALL))
		lacking("guard regions (Linux 6.13)");
	CHECK(madvise(at + 9 * PAGE, 3 * PAGE, GUARD_INSTALL) == 0);
	byte *read_only = map(SIZE, RW, ANON, -1, 0);

	fill(read_only, SIZE, 2);
	CHECK(madvise(read_only, PAGE, GUARD_INSTALL) == 0);
	CHECK(mprotect(read_only, SIZE, PROT_READ) == 0);
	byte *locked = map(SIZE, RW, ANON, -1, 0);

	CHECK(madvise(locked, PAGE, GUARD_INSTALL) == 0 && mlock(locked + 4 * PAGE, PAGE) == 0);
	int fd = file("guarded", SIZE, 3);
	byte *mapped = map(SIZE, RW, MAP_SHARED, fd, 0);

	CHECK(madvise(mapped + 5 * PAGE, PAGE, GUARD_INSTALL) == 0 || errno == EINVAL);
	int of_file = guarded(mapped + 5 * PAGE);
	pid_t child = fork();

	if (!child) {
		madvise(at + 2 * PAGE, PAGE, 103); /* GUARD_REMOVE, in the child only */
		while (!asked())
			rest(5);
		CHECK(!guarded(at + 2 * PAGE) && guarded(at + 9 * PAGE) && guarded(read_only));
		_exit(0);
	}
	ready();
	await_go();
	for (int i = 0; i < 16; i++)
		SAME(guarded(at + i * PAGE), i == 2 || (i >= 9 && i < 12));
	CHECK(guarded(read_only) && !guarded(read_only + PAGE) && guarded(locked));
	SAME(guarded(mapped + 5 * PAGE), of_file);
	byte copy[16 * PAGE];

	fill(copy, SIZE, 1);
	CHECK(!memcmp(at, copy, 2 * PAGE) && !memcmp(at + 12 * PAGE, copy + 12 * PAGE, 4 * PAGE));
	ended_well(child);
}

static void droppable(void)
{
	byte *at = mmap(NULL, SIZE, RW, 0x8 | MAP_ANONYMOUS, -1, 0);

	if (at == MAP_FAILED)
		lacking("MAP_DROPPABLE (Linux 6.11)");
	at[0] = 1;
	ready();
	await_go();
	CHECK(at[0] == 0 || at[0] == 1);
	at[PAGE] = 1;
}

static void sealed(void)
{
	byte *at = map(SIZE, RW, ANON, -1, 0);

	fill(at, SIZE, 1);
	if (syscall(462, at, SIZE, 0UL))
		lacking("mseal (Linux 6.10)");
	ready();
	await_go();
	same("sealed", at, SIZE, 1);
	CHECK(munmap(at, SIZE) < 0 && errno == EPERM);
}

static void keys(void)
{
	int key = syscall(SYS_pkey_alloc, 0UL, 0UL);

	if (key < 0)
		lacking("memory protection keys");
	byte *at = map(SIZE, RW, ANON, -1, 0);

	fill(at, SIZE, 1);
	CHECK(syscall(SYS_pkey_mprotect, at, SIZE, PROT_READ, key) == 0);
	ready();
	await_go();
	same("by key", at, SIZE, 1);
	CHECK(syscall(SYS_pkey_free, key) == 0);
}

static const struct mode modes[] = {
	{ "grows_down", grows_down },
	{ "mlock", mlock_plain },
	{ "mlock_onfault", mlock_onfault },
	{ "mlockall_current", mlockall_current },
	{ "mlockall_future", mlockall_future },
	{ "mlockall_onfault", mlockall_onfault },
	{ "advice", advice },
	{ "advice_of_child", advice_of_child },
	{ "freed", freed },
	{ "guards", guards },
	{ "droppable", droppable },
	{ "sealed", sealed },
	{ "keys", keys },
	{ NULL, NULL },
};

int main(int argc, char **argv)
{
	run_mode(argc, argv, modes);
}
