/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Trees whose makers have gone: sessions and groups without leaders, orphans, tables shared by
 * clone between tasks that are not parent and child. The root looks at everybody by /proc.
 */
#include "core_base.h"

#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#define MOST 16

struct common {
	int pids[MOST], count;
	int asked, answered;
	char cwd[MOST][200];
	int umasks[MOST], fds[MOST];
};

static struct common *common;
static char before[MOST][200];
static const char *mode;
static int sent;
static pid_t ended[6];

static int is(const char *name)
{
	return strcmp(mode, name) == 0;
}

/* a task that tells what it sees whenever `asked` grows */
static void member(void)
{
	int me = __atomic_fetch_add(&common->count, 1, __ATOMIC_SEQ_CST), seen = 0;

	common->pids[me] = getpid();
	for (;;) {
		int asked_now = __atomic_load_n(&common->asked, __ATOMIC_SEQ_CST);

		if (asked_now != seen) {
			seen = asked_now;
			CHECK(getcwd(common->cwd[me], sizeof(common->cwd[me])));
			umask(common->umasks[me] = umask(0));
			common->fds[me] = fcntl(100, F_GETFD);
			__atomic_fetch_add(&common->answered, 1, __ATOMIC_SEQ_CST);
		}
		rest(5);
	}
}

static pid_t make(unsigned long flags)
{
	pid_t pid = syscall(SYS_clone, flags, 0, 0, 0, 0);

	CHECK(pid >= 0);
	return pid;
}

static void await_members(int count)
{
	while (__atomic_load_n(&common->count, __ATOMIC_SEQ_CST) < count)
		rest(2);
	rest(20); /* those that end have ended */
}

static void ask(void)
{
	__atomic_store_n(&common->answered, 0, __ATOMIC_SEQ_CST);
	__atomic_fetch_add(&common->asked, 1, __ATOMIC_SEQ_CST);
	while (__atomic_load_n(&common->answered, __ATOMIC_SEQ_CST) < common->count)
		rest(2);
}

/* parent, group and session, as /proc tells */
static void relations(int pid, char *text)
{
	char path[64], stat[1000] = "", state;
	int parent, group, session, fd;

	snprintf(path, sizeof(path), "/proc/%d/stat", pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	CHECK(fd >= 0 && read(fd, stat, sizeof(stat) - 1) > 0 && !close(fd));
	CHECK(sscanf(strrchr(stat, ')') + 2, "%c %d %d %d", &state, &parent, &group, &session) == 4);
	snprintf(text, 200, "%d: %d %d %d", pid, parent, group, session);
}

/* what makes a session, forks a member in it, and ends (or stays) */
static pid_t leader(int stays, int groups)
{
	pid_t pid = make(SIGCHLD);

	if (pid)
		return pid;
	CHECK(setsid() > 0);
	for (int i = 0; i < 2; i++) {
		if (!make(SIGCHLD)) {
			if (groups)
				CHECK(!setpgid(0, 0));
			member();
		}
	}
	if (stays)
		member();
	_exit(7);
}

static void orphans(int wait)
{
	CHECK(!prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0));
	pid_t gone = leader(0, is("orphan_groups"));

	await_members(2);
	if (wait) {
		int status;

		CHECK(waitpid(gone, &status, 0) == gone && status == 7 << 8);
	}
}

/* a session whose leader lives; a grandchild of it lost its parent */
static void living_session(void)
{
	CHECK(!prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0));
	if (!make(SIGCHLD)) {
		CHECK(setsid() > 0);
		pid_t middle = make(SIGCHLD);

		if (!middle) {
			if (!make(SIGCHLD))
				member();
			_exit(0);
		}
		CHECK(waitpid(middle, 0, 0) == middle);
		member();
	}
	await_members(2);
}

/* orphans go to a subreaper in the middle, others to the root */
static void two_reapers(void)
{
	CHECK(!prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0));
	if (!make(SIGCHLD)) {
		CHECK(!prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0));
		pid_t gone = leader(0, 0);

		CHECK(waitpid(gone, 0, 0) == gone);
		member();
	}
	await_members(3);
	pid_t gone = leader(0, 1);

	CHECK(waitpid(gone, 0, 0) == gone);
	await_members(5);
}

/* a child keeps a session that its parent has left, two generations up */
static void sessions_left(void)
{
	if (!make(SIGCHLD)) {
		CHECK(setsid() > 0);
		if (!make(SIGCHLD)) {
			if (!make(SIGCHLD)) {
				if (!make(SIGCHLD))
					member();
				CHECK(setsid() > 0);
				member();
			}
			rest(50);
			CHECK(setsid() > 0);
			member();
		}
		member();
	}
	await_members(4);
}

/* a group with its leader in one branch and members in another */
static void group_elsewhere(void)
{
	int leads[2];

	CHECK(!pipe(leads));
	if (!make(SIGCHLD)) {
		if (!make(SIGCHLD)) {
			int me = getpid();

			CHECK(!setpgid(0, 0) && write(leads[1], &me, sizeof(me)) == sizeof(me));
			member();
		}
		member();
	}
	int leading;

	CHECK(read(leads[0], &leading, sizeof(leading)) == sizeof(leading));
	if (!make(SIGCHLD)) {
		if (!make(SIGCHLD)) {
			CHECK(!setpgid(0, leading));
			member();
		}
		member();
	}
	await_members(4);
	close(leads[0]);
	close(leads[1]);
}

static void sharing(unsigned long flags, int siblings)
{
	if (!make(SIGCHLD | (siblings ? 0 : flags))) {
		if (siblings && !make(flags | CLONE_PARENT))
			member();
		member();
	}
	await_members(siblings ? 2 : 1);
}

static void zombies_of_kinds(void)
{
	static const int ends[] = { 0, SIGKILL, SIGSEGV, SIGUSR2, SIGXCPU, 0 };

	for (int i = 0; i < 6; i++) {
		ended[i] = make(SIGCHLD);
		if (!ended[i]) {
			if (i == 4)
				CHECK(setsid() > 0);
			if (i == 5)
				CHECK(!setpgid(0, 0));
			CHECK(!prctl(PR_SET_DUMPABLE, 0, 0, 0, 0));
			if (ends[i])
				kill(getpid(), ends[i]);
			_exit(40 + i);
		}
	}
	siginfo_t info;

	for (int i = 0; i < 6; i++)
		CHECK(!waitid(P_PID, ended[i], &info, WEXITED | WNOWAIT));
}

static void zombies_as_before(void)
{
	static const int statuses[] = { 40 << 8, SIGKILL, SIGSEGV, SIGUSR2, SIGXCPU, 45 << 8 };
	int status;

	for (int i = 0; i < 6; i++) {
		CHECK(waitpid(ended[i], &status, 0) == ended[i]);
		SAME(status & ~0x80, statuses[i]);
	}
	CHECK(waitpid(-1, &status, WNOHANG) < 0 && errno == ECHILD);
}

static void count_signal(int signal)
{
	(void)signal;
	sent++;
}

static pid_t signalling;

static void set_up(void)
{
	if (is("orphans") || is("orphan_groups"))
		orphans(1);
	else if (is("zombie_leader"))
		orphans(0);
	else if (is("living_session"))
		living_session();
	else if (is("two_reapers"))
		two_reapers();
	else if (is("sessions_left"))
		sessions_left();
	else if (is("group_elsewhere"))
		group_elsewhere();
	else if (is("files_of_parent"))
		sharing(CLONE_FILES, 0);
	else if (is("files_of_sibling"))
		sharing(CLONE_FILES, 1);
	else if (is("fs_of_parent"))
		sharing(CLONE_FS, 0);
	else if (is("fs_of_sibling"))
		sharing(CLONE_FS, 1);
	else if (is("zombies"))
		zombies_of_kinds();
	else if (is("exit_signal")) {
		signal(SIGUSR1, count_signal);
		signalling = make(SIGUSR1);
		if (!signalling)
			member();
		if (!make(0))
			member();
		await_members(2);
	} else
		bad("no such mode: %s", mode);
}

static void still_shared(void)
{
	if (is("files_of_parent")) {
		CHECK(dup2(0, 100) == 100);
		ask();
		SAME(common->fds[0], 0);
	} else if (is("fs_of_parent")) {
		CHECK(!chdir(folder));
		umask(0123);
		ask();
		CHECK(!strcmp(common->cwd[0], folder));
		SAME(common->umasks[0], 0123);
	} else if (is("exit_signal")) {
		CHECK(!sent && !kill(signalling, SIGKILL));
		while (!sent)
			rest(2);
		CHECK(waitpid(signalling, 0, __WALL) == signalling);
	} else if (is("zombies"))
		zombies_as_before();
}

int main(int argc, char **argv)
{
	begin(argv);
	CHECK(argc == 3);
	mode = argv[2];
	common = mmap(0, sizeof(*common), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(common != MAP_FAILED);
	set_up();
	for (int i = 0; i < common->count; i++)
		relations(common->pids[i], before[i]);
	ready();
	await_go();
	for (int i = 0; i < common->count; i++) {
		char now[200];

		relations(common->pids[i], now);
		if (strcmp(now, before[i]))
			bad("was %s, is %s", before[i], now);
	}
	ask();
	still_shared();
	good();
	return 0;
}
