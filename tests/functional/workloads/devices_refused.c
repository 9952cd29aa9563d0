/* SPDX-License-Identifier: Apache-2.0 */
/* Objects of the kernel that cannot be taken; the second argument names one. */
#include "core_base.h"
#include <linux/filter.h>
#include <linux/landlock.h>
#include <linux/perf_event.h>
#include <linux/seccomp.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#ifndef SYS_memfd_secret
#define SYS_memfd_secret 447
#endif

static const char *state;

static int is(const char *name)
{
	return !strcmp(state, name);
}

static int perf(void)
{
	struct perf_event_attr asked = { .type = PERF_TYPE_SOFTWARE, .size = sizeof(asked),
					 .config = PERF_COUNT_SW_TASK_CLOCK };

	return syscall(SYS_perf_event_open, &asked, 0, -1, -1, 0);
}

static int faults(void)
{
	struct uffdio_api api = { .api = UFFD_API };
	int fd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);

	if (fd >= 0)
		CHECK(!ioctl(fd, UFFDIO_API, &api));
	return fd;
}

static int ruleset(void)
{
	struct landlock_ruleset_attr asked = { .handled_access_fs = LANDLOCK_ACCESS_FS_WRITE_FILE };

	return syscall(SYS_landlock_create_ruleset, &asked, sizeof(asked), 0);
}

static int secret(void)
{
	int fd = syscall(SYS_memfd_secret, 0);

	if (fd >= 0) {
		CHECK(!ftruncate(fd, 4096));
		char *at = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

		CHECK(at != MAP_FAILED);
		at[0] = 1;
	}
	return fd;
}

static int notifier(void)
{
	struct sock_filter code[] = { BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0),
				      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_acct, 0, 1),
				      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF),
				      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW) };
	struct sock_fprog program = { 4, code };

	prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
	return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER,
		       &program);
}

static int machine(void)
{
	int fd = open("/dev/kvm", O_RDWR);

	return fd < 0 ? fd : ioctl(fd, 0xAE01, 0);
}

/* The server of a file system that is mounted nowhere. */
static int server(void)
{
	static const char *const given[][2] = {
		{ "rootmode", "40000" }, { "user_id", "0" }, { "group_id", "0" },
	};
	int fd = open("/dev/fuse", O_RDWR), fs = syscall(SYS_fsopen, "fuse", 0);
	char number[12];

	if (fd < 0 || fs < 0)
		return -1;
	snprintf(number, sizeof(number), "%d", fd);
	CHECK(!syscall(SYS_fsconfig, fs, 1 /* a string */, "fd", number, 0));
	for (int i = 0; i < 3; i++)
		CHECK(!syscall(SYS_fsconfig, fs, 1, given[i][0], given[i][1], 0));
	CHECK(!syscall(SYS_fsconfig, fs, 6 /* create */, 0, 0, 0));
	return fd;
}

int main(int argc, char **argv)
{
	int fd = -1;

	begin(argv);
	state = argc > 2 ? argv[2] : "";
	if (is("perf"))
		fd = perf();
	else if (is("userfaultfd"))
		fd = faults();
	else if (is("landlock"))
		fd = ruleset();
	else if (is("secret"))
		fd = secret();
	else if (is("notifier"))
		fd = notifier();
	else if (is("mount"))
		fd = syscall(SYS_fsopen, "tmpfs", 0);
	else if (is("kvm"))
		fd = machine();
	else if (is("fuse"))
		fd = server();
	if (fd < 0) {
		char text[100];

		snprintf(text, sizeof(text), "lacking: %s", state);
		put("ready", text);
		await_go();
		return 0;
	}
	ready();
	await_go();
	CHECK(fcntl(fd, F_GETFD) >= 0);
	good();
	return 0;
}
