/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Filters as the arguments say, and much memory: CALL=ACTION in the main thread, t:CALL=ACTION in
 * another. Once the file `more` is there, one more filter; then the file `added` is.
 */
#include "core_base.h"
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#define SIZE ((size_t)32 << 20)

static const struct {
	const char *name;
	long number;
} calls[] = {
	{ "clone", SYS_clone },
	{ "close_range", SYS_close_range },
	{ "getitimer", SYS_getitimer },
	{ "mremap", SYS_mremap },
	{ "rt_sigaction", SYS_rt_sigaction },
	{ "rt_sigreturn", SYS_rt_sigreturn },
	{ "semctl", SYS_semctl },
	{ "sigaltstack", SYS_sigaltstack },
	{ "timer_gettime", SYS_timer_gettime },
	{ "userfaultfd", SYS_userfaultfd },
}, actions[] = {
	{ "errno", SECCOMP_RET_ERRNO | 44 },
	{ "kill", SECCOMP_RET_KILL_PROCESS },
	{ "trap", SECCOMP_RET_TRAP },
};

#define VALUE(table, text, length) value_of(table, sizeof(table) / sizeof(*table), text, length)

static long value_of(const typeof(calls[0]) *table, size_t count, const char *text, size_t length)
{
	for (size_t i = 0; i < count; i++)
		if (strlen(table[i].name) == length && !strncmp(table[i].name, text, length))
			return table[i].number;
	bad("unknown word %s", text);
	exit(1);
}

static void set(const char *text)
{
	const char *action = strchr(text, '=') + 1;
	long number = VALUE(calls, text, action - 1 - text);
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, number, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, VALUE(actions, action, strlen(action))),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = { 4, code };

	CHECK(!syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program));
}

static volatile int up;

static void *body(void *argv)
{
	for (char **at = argv; *at; at++)
		if (!strncmp(*at, "t:", 2))
			set(*at + 2);
	up = 1;
	await_go();
	return NULL;
}

static int is_wanted(void)
{
	char path[4096];

	snprintf(path, sizeof(path), "%s/more", folder);
	return !access(path, F_OK);
}

int main(int argc, char **argv)
{
	char *memory = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	pthread_t thread;

	begin(argv);
	CHECK(memory != MAP_FAILED);
	memset(memory, 7, SIZE);
	CHECK(!prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
	CHECK(!pthread_create(&thread, NULL, body, argv + 2));
	while (!up)
		rest(5);
	for (int i = 2; i < argc; i++)
		if (strncmp(argv[i], "t:", 2))
			set(argv[i]);
	ready();
	for (int added = 0; !asked(); rest(5)) {
		if (!added && is_wanted()) {
			set("mremap=errno");
			put("added", "");
			added = 1;
		}
	}
	for (size_t at = 0; at < SIZE; at += 4096)
		CHECK(memory[at] == 7);
	CHECK(!pthread_join(thread, NULL));
	good();
	return 0;
}
