/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory of reserved huge pages. Where there are too few, the kernel is permitted to make more
 * when they are asked for (vm.nr_overcommit_hugepages), until the check is done.
 */
#include "memory_base.h"
#include <sys/shm.h>

#define HUGE (2UL << 20)
#define WANTED 16
#define MORE "/proc/sys/vm/nr_overcommit_hugepages"

static int before;

static int permitted(int wanted)
{
	FILE *file = fopen(MORE, "r+");
	int now = -1;

	if (!file || fscanf(file, "%d", &now) != 1)
		return 0;
	rewind(file);
	if (wanted != now)
		fprintf(file, "%d", wanted);
	fclose(file);
	return now;
}

static void until_go(void)
{
	ready();
	await_go();
}

static byte *huge(int flags, int fd)
{
	byte *at = mmap(NULL, 3 * HUGE, RW, flags, fd, 0);

	if (at == MAP_FAILED)
		lacking("huge pages");
	return at;
}

static byte *anonymous(int flags)
{
	return huge(flags | MAP_ANONYMOUS | MAP_HUGETLB, -1);
}

static void shown(const byte *at, const char *name)
{
	char line[512];
	unsigned long from;
	FILE *maps = fopen("/proc/self/maps", "r");

	CHECK(maps);
	while (fgets(line, sizeof(line), maps))
		if (sscanf(line, "%lx", &from) == 1 && from == (unsigned long)at) {
			if (!strstr(line, name))
				bad("not %s: %s", name, line);
			fclose(maps);
			return;
		}
	bad("%s is not mapped", name);
}

static void private(void)
{
	byte *at = anonymous(MAP_PRIVATE);

	fill(at + HUGE, HUGE, 1);
	CHECK(!mprotect(at, 3 * HUGE, PROT_READ));
	until_go();
	shown(at, "/anon_hugepage (deleted)");
	same("private", at + HUGE, HUGE, 1);
	CHECK(!mprotect(at, 3 * HUGE, RW));
	at[0] = at[2 * HUGE] = 1;
}

static void shared(void)
{
	byte *at = anonymous(MAP_SHARED);

	fill(at, HUGE, 2);
	pid_t child = fork();

	if (!child) {
		at[2 * HUGE] = 7;
		while (at[2 * HUGE] == 7)
			rest(10);
		_exit(at[2 * HUGE] - 9);
	}
	while (at[2 * HUGE] != 7)
		rest(10);
	until_go();
	shown(at, "/anon_hugepage (deleted)");
	same("shared", at, HUGE, 2);
	at[2 * HUGE] = 9;
	ended_well(child);
}

static void copied(void)
{
	byte *at = anonymous(MAP_PRIVATE);

	fill(at, HUGE, 3);
	fill(at + HUGE, HUGE, 4);
	pid_t child = fork();

	if (!child) {
		fill(at, HUGE, 5);
		put("child", "ready");
		await_go();
		same("of the child", at, HUGE, 5);
		same("of both", at + HUGE, HUGE, 4);
		_exit(0);
	}
	while (access(path_of("child"), F_OK))
		rest(10);
	until_go();
	same("of the parent", at, HUGE, 3);
	same("of both", at + HUGE, HUGE, 4);
	ended_well(child);
}

static void memfd(void)
{
	int fd = memfd_create("huge", MFD_HUGETLB | MFD_ALLOW_SEALING);

	if (fd < 0 || ftruncate(fd, 3 * HUGE))
		lacking("huge pages");
	byte *at = huge(MAP_SHARED, fd), *own = huge(MAP_PRIVATE, fd);

	fill(at + HUGE, HUGE, 6);
	fill(own, HUGE, 7);
	CHECK(!fcntl(fd, F_ADD_SEALS, F_SEAL_GROW | F_SEAL_SHRINK));
	until_go();
	shown(at, "/memfd:huge (deleted)");
	shown(own, "/memfd:huge (deleted)");
	same("memfd", at + HUGE, HUGE, 6);
	same("a copy", own, HUGE, 7);
	same("not a copy", own + HUGE, HUGE, 6);
	SAME(fcntl(fd, F_GET_SEALS), F_SEAL_GROW | F_SEAL_SHRINK);
	struct stat status;

	CHECK(!fstat(fd, &status));
	SAME(status.st_size, 3 * HUGE);
	SAME(status.st_blksize, HUGE);
	SAME(at[0] | at[2 * HUGE], 0);
}

static void unmapped(void)
{
	int fd = memfd_create("huge", MFD_HUGETLB);

	if (fd < 0 || ftruncate(fd, 3 * HUGE))
		lacking("huge pages");
	byte *at = huge(MAP_SHARED, fd);

	fill(at + 2 * HUGE, HUGE, 8);
	CHECK(!munmap(at, 3 * HUGE));
	until_go();
	at = huge(MAP_SHARED, fd);
	same("memfd", at + 2 * HUGE, HUGE, 8);
	SAME(at[0], 0);
}

static void sysv(void)
{
	int id = shmget(IPC_PRIVATE, 2 * HUGE, SHM_HUGETLB | IPC_CREAT | 0600);
	byte *at = id < 0 ? (byte *)-1 : shmat(id, NULL, 0);

	if (at == (byte *)-1)
		lacking("huge pages");
	fill(at + HUGE, HUGE, 9);
	CHECK(!shmctl(id, IPC_RMID, NULL));
	until_go();
	same("segment", at + HUGE, HUGE, 9);
	SAME(at[0], 0);
}

static const struct mode modes[] = {
	{ "private", private },	  { "shared", shared }, { "copied", copied }, { "memfd", memfd },
	{ "unmapped", unmapped }, { "sysv", sysv },	{ NULL, NULL },
};

static void put_back(void)
{
	permitted(before);
}

int main(int argc, char **argv)
{
	before = permitted(WANTED);
	atexit(put_back);
	run_mode(argc, argv, modes);
}
