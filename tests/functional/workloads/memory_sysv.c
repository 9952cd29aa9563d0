/* SPDX-License-Identifier: Apache-2.0 */
/* System V shared memory in every shape, semaphores and queues of the host's namespace. */
#include "memory_base.h"
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/sem.h>
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

/* Values in the host's own namespace, and what is undone when a task ends. */
static void semaphores(void)
{
	int id = semget(IPC_PRIVATE, 4, 0600);
	unsigned short values[4] = { 5, 0, 7, 1 };
	struct sembuf mine[] = { { 0, -2, SEM_UNDO }, { 2, 3, SEM_UNDO } };
	struct sembuf plain = { 3, -1, 0 }, childs = { 1, 4, SEM_UNDO };

	CHECK(id >= 0 && semctl(id, 0, SETALL, values) == 0);
	CHECK(semop(id, mine, 2) == 0 && semop(id, &plain, 1) == 0);
	pid_t child = fork();

	if (!child) {
		CHECK(semop(id, &childs, 1) == 0);
		while (!asked())
			rest(5);
		_exit(0);
	}
	while (semctl(id, 1, GETVAL) != 4)
		rest(5);
	ready();
	await_go();
	ended_well(child);
	SAME(semctl(id, 0, GETVAL), 3);
	SAME(semctl(id, 1, GETVAL), 0);
	SAME(semctl(id, 2, GETVAL), 10);
	SAME(semctl(id, 3, GETVAL), 0);
	child = fork();
	if (!child) { /* what this task has to undo is its own: not its child's */
		SAME(semctl(id, 0, GETVAL), 3);
		_exit(0);
	}
	ended_well(child);
	CHECK(semctl(id, 0, IPC_RMID) == 0);
}

static void messages(void)
{
	int id = msgget(IPC_PRIVATE, 0600);
	struct {
		long type;
		char text[100];
	} one = { 7, "first" }, two = { 8, "second" };

	CHECK(id >= 0 && msgsnd(id, &one, 6, 0) == 0 && msgsnd(id, &two, 7, 0) == 0);
	ready();
	await_go();
	CHECK(msgrcv(id, &one, 100, 8, IPC_NOWAIT) == 7 && !strcmp(one.text, "second"));
	CHECK(msgrcv(id, &one, 100, 0, IPC_NOWAIT) == 6 && !strcmp(one.text, "first"));
	CHECK(msgctl(id, IPC_RMID, NULL) == 0);
}

static const struct mode modes[] = {
	{ "pieces", pieces }, { "marked", marked }, { "read_only", read_only },
	{ "semaphores", semaphores }, { "messages", messages }, { NULL, NULL },
};

int main(int argc, char **argv)
{
	run_mode(argc, argv, modes);
}
