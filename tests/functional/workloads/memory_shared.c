/* SPDX-License-Identifier: Apache-2.0 */
/* Shared anonymous memory and memfds, mapped in every shape and by all sorts of relatives. */
#include "memory_base.h"

#define SIZE (16 * PAGE)

static byte *whole(void)
{
	byte *at = map(SIZE, RW, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	fill(at, SIZE, 1);
	return at;
}

static void holes(void)
{
	byte *at = whole();

	CHECK(munmap(at + 3 * PAGE, PAGE) == 0 && munmap(at + 7 * PAGE, 2 * PAGE) == 0);
	CHECK(mprotect(at + 10 * PAGE, PAGE, PROT_READ) == 0);
	byte copy[16 * PAGE];

	fill(copy, SIZE, 1);
	ready();
	await_go();
	for (int page = 0; page < 16; page++)
		if (page != 3 && page != 7 && page != 8)
			CHECK(!memcmp(at + page * PAGE, copy + page * PAGE, PAGE));
	at[0]++;
}

/* Pieces in another order, some twice: mremap with an old size of 0 maps the same once more. */
static void swapped(void)
{
	byte *at = whole(), *to = map(SIZE, PROT_NONE, ANON, -1, 0);
	const int pages[] = { 9, 2, 3, 15, 2, 0 };

	for (int i = 0; i < 6; i++)
		CHECK(mremap(at + pages[i] * PAGE, 0, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED,
			     to + i * PAGE) == to + i * PAGE);
	CHECK(munmap(at, SIZE) == 0);
	byte copy[16 * PAGE];

	fill(copy, SIZE, 1);
	ready();
	await_go();
	for (int i = 0; i < 6; i++)
		CHECK(!memcmp(to + i * PAGE, copy + pages[i] * PAGE, PAGE));
	to[PAGE] ^= 0xff;
	CHECK(to[PAGE] == to[4 * PAGE]);
}

/* Two children share what their parent has unmapped. */
static void siblings(void)
{
	byte *at = whole();
	pid_t children[2];

	for (int i = 0; i < 2; i++) {
		children[i] = fork();
		if (children[i])
			continue;
		if (i)
			CHECK(munmap(at, 4 * PAGE) == 0);
		while (!asked())
			rest(5);
		at[8 * PAGE + i] = 'a' + i;
		while (at[8 * PAGE] != 'a' || at[8 * PAGE + 1] != 'b')
			rest(5);
		_exit(0);
	}
	CHECK(munmap(at, SIZE) == 0);
	ready();
	await_go();
	ended_well(children[0]);
	ended_well(children[1]);
}

/* Child and grandchild of different branches have it at other addresses and offsets. */
static void cousins(void)
{
	byte *at = whole();
	pid_t left = fork();

	if (!left) {
		byte *to = room(SIZE);

		CHECK(mremap(at, SIZE, SIZE, MREMAP_MAYMOVE | MREMAP_FIXED, to) == to);
		while (to[5] != 42)
			rest(5);
		to[6] = 43;
		_exit(0);
	}
	pid_t right = fork();

	if (!right) {
		pid_t own = fork();

		if (!own) {
			CHECK(munmap(at + PAGE, SIZE - PAGE) == 0);
			while (!asked())
				rest(5);
			at[5] = 42;
			while (at[6] != 43)
				rest(5);
			_exit(0);
		}
		CHECK(munmap(at, SIZE) == 0);
		ended_well(own);
		_exit(0);
	}
	CHECK(munmap(at, SIZE) == 0);
	ready();
	await_go();
	ended_well(left);
	ended_well(right);
}

/* Read-only, no access, never touched, one page touched. */
static void protected(void)
{
	byte *at = whole(), *no = whole(), *none = map(SIZE, RW, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	byte *one = map(SIZE, RW, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	one[9 * PAGE] = 9;
	CHECK(mprotect(at, SIZE, PROT_READ) == 0 && mprotect(no, SIZE, PROT_NONE) == 0);
	ready();
	await_go();
	same("read only", at, SIZE, 1);
	CHECK(mprotect(no, SIZE, RW) == 0 && mprotect(at, SIZE, RW) == 0);
	same("without access", no, SIZE, 1);
	CHECK(none[5] == 0 && one[9 * PAGE] == 9 && one[0] == 0);
	at[0] = no[0] = none[0] = 1;
}

static void dev_zero(void)
{
	int fd = open("/dev/zero", O_RDWR);
	byte *both = map(SIZE, RW, MAP_SHARED, fd, 0), *own = map(SIZE, RW, MAP_PRIVATE, fd, 0);

	close(fd);
	fill(both, SIZE, 2);
	fill(own + PAGE, PAGE, 3);
	pid_t child = fork();

	if (!child) {
		while (both[0] != 200)
			rest(5);
		both[1] = 201;
		_exit(0);
	}
	both[0] = 1;
	ready();
	await_go();
	both[0] = 200;
	ended_well(child);
	CHECK(both[1] == 201 && own[0] == 0);
	same("private page", own + PAGE, PAGE, 3);
}

static int memfd(unsigned flags)
{
	int fd = memfd_create("a name", flags);

	CHECK(fd >= 0 && ftruncate(fd, SIZE) == 0);
	byte *at = map(SIZE, RW, MAP_SHARED, fd, 0);

	fill(at, SIZE, 4);
	CHECK(munmap(at, SIZE) == 0);
	return fd;
}

static void memfd_closed(void)
{
	int fd = memfd(0);
	byte *at = map(SIZE, RW, MAP_SHARED, fd, 0);
	byte *part = map(2 * PAGE, PROT_READ, MAP_SHARED, fd, 4 * PAGE);

	close(fd);
	pid_t child = fork();

	if (!child) {
		while (at[4 * PAGE] != 7)
			rest(5);
		at[0] = 8;
		_exit(0);
	}
	at[4 * PAGE] = 0;
	ready();
	await_go();
	same("first pages", at, 4 * PAGE, 4);
	at[4 * PAGE] = 7;
	ended_well(child);
	CHECK(part[0] == 7 && at[0] == 8);
}

static void memfd_private(void)
{
	int fd = memfd(0);
	byte *own = map(SIZE, RW, MAP_PRIVATE, fd, 0), *closed;

	fill(own + PAGE, PAGE, 5);
	int other = memfd(0);

	closed = map(SIZE, RW, MAP_PRIVATE, other, 0);
	close(other);
	fill(closed + 2 * PAGE, PAGE, 6);
	ready();
	await_go();
	same("page of the memfd", own, PAGE, 4);
	same("own page", own + PAGE, PAGE, 5);
	same("page of the closed one", closed, PAGE, 4);
	same("own page over the closed one", closed + 2 * PAGE, PAGE, 6);
	byte there[PAGE];

	CHECK(pread(fd, there, PAGE, 0) == (ssize_t)PAGE);
	same("read", there, PAGE, 4);
}

/* Mapped in part, or nowhere; open once for reading only. */
static void memfd_unmapped(void)
{
	int part = memfd(0), nowhere = memfd(0), sparse = memfd_create("sparse", 0);
	byte *at = map(PAGE, RW, MAP_SHARED, part, 5 * PAGE), all[16 * PAGE];
	char link[40];
	int writable = memfd(0);

	snprintf(link, sizeof(link), "/proc/self/fd/%d", writable);
	int readable = open(link, O_RDONLY);

	close(writable);
	CHECK(ftruncate(sparse, 1L << 40) == 0 && pwrite(sparse, "far", 3, 1L << 39) == 3);
	int odd = memfd_create("odd", 0);

	CHECK(ftruncate(odd, PAGE + 77) == 0);
	byte *shown = map(2 * PAGE, RW, MAP_SHARED, odd, 0);

	strcpy((char *)shown + PAGE + 1000, "behind the end");
	lseek(nowhere, 123, SEEK_SET);
	ready();
	await_go();
	const int every[] = { part, nowhere, readable };

	for (int i = 0; i < 3; i++) {
		CHECK(pread(every[i], all, SIZE, 0) == (ssize_t)SIZE);
		same("content", all, SIZE, 4);
	}
	CHECK(pwrite(part, "through", 7, 5 * PAGE) == 7 && !memcmp(at, "through", 7));
	CHECK(write(readable, "x", 1) < 0 && errno == EBADF);
	SAME(lseek(nowhere, 0, SEEK_CUR), 123);
	SAME(lseek(sparse, 0, SEEK_END), 1L << 40);
	SAME(lseek(odd, 0, SEEK_END), PAGE + 77);
	CHECK(!strcmp((char *)shown + PAGE + 1000, "behind the end"));
	CHECK(pread(sparse, all, 4, 1L << 39) == 4 && !memcmp(all, "far", 4));
}

#define F_SEAL_FUTURE 0x10
#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 8U
#define MFD_EXEC 0x10U
#endif

static void memfd_seals(void)
{
	int size = memfd(MFD_ALLOW_SEALING), all = memfd(MFD_ALLOW_SEALING);
	int future = memfd(MFD_ALLOW_SEALING), never = memfd(0);
	int plain = memfd_create("noexec", MFD_NOEXEC_SEAL);
	byte *at = map(SIZE, RW, MAP_SHARED, future, 0), *own = map(SIZE, RW, MAP_PRIVATE, all, 0);

	CHECK(fcntl(size, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) == 0);
	CHECK(fcntl(all, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL) == 0);
	CHECK(fcntl(future, F_ADD_SEALS, F_SEAL_FUTURE) == 0);
	own[0] = 77;
	const int every[] = { size, all, future, never, plain };
	int seals[5];
	struct stat status;

	for (int i = 0; i < 5; i++)
		seals[i] = fcntl(every[i], F_GET_SEALS);
	ready();
	await_go();
	for (int i = 0; i < 5; i++)
		SAME(fcntl(every[i], F_GET_SEALS), seals[i]);
	CHECK(fstat(plain, &status) == 0);
	SAME(status.st_mode & 0777, 0666);
	CHECK(fchmod(plain, 0777) < 0);
	byte there[PAGE];

	CHECK(pread(all, there, PAGE, 0) == (ssize_t)PAGE && own[0] == 77);
	same("sealed", there, PAGE, 4);
	same("sealed later", at, SIZE, 4);
	at[0] = 1;
	CHECK(pwrite(future, "x", 1, 0) < 0 && ftruncate(size, PAGE) < 0);
}

static const struct mode modes[] = {
	{ "holes", holes },		{ "swapped", swapped },
	{ "siblings", siblings },	{ "cousins", cousins },
	{ "protected", protected },	{ "dev_zero", dev_zero },
	{ "memfd_closed", memfd_closed }, { "memfd_private", memfd_private },
	{ "memfd_unmapped", memfd_unmapped }, { "memfd_seals", memfd_seals },
	{ NULL, NULL },
};

int main(int argc, char **argv)
{
	run_mode(argc, argv, modes);
}
