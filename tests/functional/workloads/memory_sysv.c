/* SPDX-License-Identifier: Apache-2.0 */
/* System V shared memory in every shape. */
#include "memory_base.h"
#include <sys/ipc.h>
#include <sys/shm.h>

#define SIZE (16 * PAGE)

static int make(void)
{
	int id = shmget(IPC_PRIVATE, SIZE - 100, 0600);
	byte *at = shmat(id, NULL, 0);

	CHECK(id >= 0 && at != (void *)-1);
	fill(at, SIZE - 100, 1);
	CHECK(shmdt(at) == 0);
	return id;
}

static byte *attach(int id, int flags)
{
	byte *at = shmat(id, NULL, flags);

	CHECK(at != (void *)-1);
	return at;
}

static struct shmid_ds told(int id)
{
	struct shmid_ds is;

	CHECK(shmctl(id, IPC_STAT, &is) == 0);
	return is;
}

static void pieces(void)
{
	int id = make();
	byte *at = attach(id, 0), *to = room(PAGE), all[SIZE];

	CHECK(munmap(at + 3 * PAGE, 2 * PAGE) == 0);
	CHECK(mremap(at + 9 * PAGE, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to) == to);
	CHECK(mprotect(at, PAGE, PROT_READ) == 0);
	CHECK(munmap(at + 12 * PAGE, 4 * PAGE) == 0);
	unsigned long before = told(id).shm_nattch;

	fill(all, SIZE, 1);
	ready();
	await_go();
	CHECK(!memcmp(at, all, 3 * PAGE) && !memcmp(at + 5 * PAGE, all + 5 * PAGE, 4 * PAGE));
	CHECK(!memcmp(to, all + 9 * PAGE, PAGE));
	CHECK(!memcmp(at + 10 * PAGE, all + 10 * PAGE, 2 * PAGE));
	SAME(told(id).shm_nattch, before);
	byte *again = attach(id, 0);

	same("what nobody had attached", again, SIZE - 100, 1);
	CHECK(shmctl(id, IPC_RMID, NULL) == 0);
}

static void marked(void)
{
	int id = make();
	byte *at = attach(id, 0);
	pid_t child = fork();

	if (!child) {
		while (!asked())
			rest(5);
		same("child", at, PAGE, 1);
		_exit(0);
	}
	CHECK(shmctl(id, IPC_RMID, NULL) == 0);
	ready();
	await_go();
	CHECK(told(id).shm_perm.mode & SHM_DEST);
	ended_well(child);
	same("marked", at, SIZE - 100, 1);
	CHECK(shmdt(at) == 0);
	struct shmid_ds is;

	CHECK(shmctl(id, IPC_STAT, &is) < 0);
}

static void read_only(void)
{
	int id = make();
	byte *at = attach(id, SHM_RDONLY), *code = attach(id, SHM_EXEC);
	byte *closed = attach(id, 0);

	CHECK(mprotect(closed, SIZE, PROT_NONE) == 0);
	CHECK(shmctl(id, IPC_RMID, NULL) == 0);
	ready();
	await_go();
	same("read only", at, SIZE - 100, 1);
	CHECK(mprotect(at, SIZE, RW) < 0);
	same("code", code, SIZE - 100, 1);
	CHECK(mprotect(closed, SIZE, RW) == 0);
	closed[0]++;
	SAME(at[0], closed[0]);
}

static const struct mode modes[] = {
	{ "pieces", pieces }, { "marked", marked }, { "read_only", read_only }, { NULL, NULL },
};

int main(int argc, char **argv)
{
	run_mode(argc, argv, modes);
}
