/* SPDX-License-Identifier: Apache-2.0 */
/* System V shared memory: of parent and child, by key, private, read only, and marked for removal. */
#include "core_base.h"
#include <sys/ipc.h>
#include <sys/shm.h>
#include <sys/wait.h>

#define SIZE 16384

int main(int argc, char **argv)
{
	begin(argv);
	key_t key = 0x70000000 | getpid();
	int named = shmget(key, SIZE, IPC_CREAT | IPC_EXCL | 0640);
	int gone = shmget(IPC_PRIVATE, SIZE, 0600);
	char *a = shmat(named, NULL, 0), *b = shmat(named, NULL, SHM_RDONLY), *c = shmat(gone, NULL, 0);

	CHECK(a != (void *)-1 && b != (void *)-1 && c != (void *)-1);
	CHECK(shmctl(gone, IPC_RMID, NULL) == 0); /* goes with its last user */
	strcpy(a, "by key");
	strcpy(c + 8192, "without a name");
	pid_t child = fork();

	if (!child) {
		while (a[100] != 1)
			rest(5);
		strcpy(a + 200, "of the child");
		_exit(7);
	}
	struct shmid_ds before, after;

	CHECK(shmctl(named, IPC_STAT, &before) == 0);
	ready();
	await_go();
	CHECK(!strcmp(a, "by key") && !strcmp(b, "by key") && !strcmp(c + 8192, "without a name"));
	a[100] = 1;
	int status;

	CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 7);
	CHECK(!strcmp(b + 200, "of the child"));
	SAME(shmget(key, 0, 0), named);
	CHECK(shmctl(named, IPC_STAT, &after) == 0);
	SAME(after.shm_segsz, before.shm_segsz);
	SAME(after.shm_perm.mode, before.shm_perm.mode);
	SAME(after.shm_nattch, 2);
	CHECK(shmctl(gone, IPC_STAT, &after) == 0);
	CHECK(after.shm_perm.mode & SHM_DEST); /* still goes with its last user */
	CHECK(shmdt(a) == 0 && shmdt(b) == 0 && shmctl(named, IPC_RMID, NULL) == 0);
	good();
	return 0;
}
