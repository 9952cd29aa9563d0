/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Chooses the pid of the next task in a container, and reads seccomp filters: the two
 * parts that need CAP_SYS_ADMIN, in a program that does nothing else.
 *
 *   pidhelper [--socket PATH]   serve; default /run/torpor/pidhelper.sock
 *   pidhelper set PID WANT      once, for an engine that is root on a host
 *
 * A pid: /proc/sys/kernel/ns_last_pid acts on the pid namespace of the task that
 * *writes* it, whichever /proc it is (kernel/pid_namespace.c, pid_ns_ctl_handler,
 * v6.8).  So the file is opened once at the start, and for each request a child
 * is made inside the wanted namespace, which writes want-1 and ends.  It is
 * reaped before the reply, so that the pid it held is free again.
 *
 * A filter: filter.h. It takes a helper without a filter of its own (seccomp profile
 * Unconfined); any other answers EACCES.
 *
 * Rights: CAP_SYS_ADMIN (setns to a pid namespace; mounting a procfs of its own
 * when the container's /proc/sys is read-only; reading filters) and CAP_SYS_PTRACE (reading
 * /proc/PID/ns/pid of others, and stopping them for a moment).
 *
 * Who may ask: a peer with uid 0 that the kernel sees in this program's own pid
 * namespace.  What is refused: namespaces that are not strictly below its own,
 * so neither the node's nor a stranger's; pids < 2; any other message.  Each
 * refusal is one line on stderr.
 *
 * Rules for editing: as in placeholder.c.
 */
#include <linux/mount.h>
#include <linux/nsfs.h>
#include <linux/prctl.h>
#include <linux/sched.h>
#include <linux/signal.h>
#include <linux/stat.h>

#include "pidhelper/filter.h"
#include "torpor/pidhelper.h"
#include "torpor/sys.h"
#include "torpor/text.h"
#include "torpor/unixsocket.h"

#define LAST_PID "/proc/sys/kernel/ns_last_pid"
#define PID_MAX_LIMIT 4194304 /* include/linux/threads.h */
#define MAX_NAMESPACE_DEPTH 33
#define MAX_PEERS 16
#define STDERR 2
#define EXIT_USAGE 2

struct helper {
	int own_namespace; /* fd of /proc/self/ns/pid */
	int last_pid;      /* fd of ns_last_pid */
};

TORPOR_ENTRY(pidhelper_main);

static long complain(const char *what, long error)
{
	struct line line = {.used = 0};

	line_add(&line, "pidhelper: ");
	line_add(&line, what);
	line_add(&line, ": errno ");
	line_add_number(&line, -error);
	line_write(&line, STDERR);
	return error;
}

static long refuse(long peer, const struct pidhelper_request *request, const char *why, long error)
{
	struct line line = {.used = 0};

	line_add(&line, "pidhelper: refused peer ");
	line_add_number(&line, peer);
	if (request) {
		line_add(&line, ", task ");
		line_add_number(&line, request->pid);
		line_add(&line, request->what == PIDHELPER_FILTER ? ", filter " : ", pid ");
		line_add_number(&line, request->number);
	}
	line_add(&line, ": ");
	line_add(&line, why);
	line_add(&line, " (errno ");
	line_add_number(&line, -error);
	line_add(&line, ")");
	line_write(&line, STDERR);
	return error;
}

static long open_namespace(long pid)
{
	struct line path = {.used = 0};
	long fd;

	line_add(&path, "/proc/");
	line_add_number(&path, pid);
	line_add(&path, "/ns/pid");
	path.text[path.used] = '\0';
	fd = sys_openat(AT_FDCWD, path.text, O_RDONLY | O_CLOEXEC, 0);
	return fd == -ENOENT ? -ESRCH : fd;
}

/* 1 when both descriptors are the same namespace, 0 when not, or -errno. */
static long same_namespace(int a, int b)
{
	struct statx one, two;
	long error = SYS5(__NR_statx, a, "", AT_EMPTY_PATH, STATX_INO, &one);

	if (!error)
		error = SYS5(__NR_statx, b, "", AT_EMPTY_PATH, STATX_INO, &two);
	if (error)
		return error;
	return one.stx_ino == two.stx_ino && one.stx_dev_major == two.stx_dev_major &&
	       one.stx_dev_minor == two.stx_dev_minor;
}

/* 0 when the namespace is strictly below the helper's own, else -errno. */
static long check_below(const struct helper *helper, int namespace)
{
	int at = namespace;
	long result = same_namespace(at, helper->own_namespace);

	if (result)
		return result < 0 ? result : -EPERM;
	for (int depth = 0; depth < MAX_NAMESPACE_DEPTH; depth++) {
		long parent = SYS2(__NR_ioctl, at, NS_GET_PARENT);

		if (at != namespace)
			sys_close(at);
		if (parent < 0)
			return parent;
		at = (int)parent;
		result = same_namespace(at, helper->own_namespace);
		if (result)
			break;
	}
	sys_close(at);
	if (result < 0)
		return result;
	return result ? 0 : -EPERM;
}

/* In the child, whose pid namespace is the wanted one: the errno is the exit status. */
__attribute__((noreturn)) static void write_last_pid(int fd, long want)
{
	struct line number = {.used = 0};
	long written;

	line_add_number(&number, want - 1);
	written = SYS4(__NR_pwrite64, fd, number.text, number.used, 0);
	if (written >= 0 && (size_t)written != number.used)
		written = -EIO;
	for (;;)
		SYS1(__NR_exit_group, written < 0 ? -written : 0);
}

/* Until it ends: its exit status is an errno. */
static long await_child(long child)
{
	int status = 0;
	long error;

	do
		error = sys_wait4(child, &status, 0);
	while (error == -EINTR);
	if (error < 0)
		return error;
	if (status & 0x7f) /* killed: the namespace is going away */
		return -ESRCH;
	return -((status >> 8) & 0xff);
}

/* A child of this task in the namespace that setns chose for children; waits for it. */
static long in_child(int last_pid, long want)
{
	long child = SYS5(__NR_clone, SIGCHLD, 0, 0, 0, 0);

	if (child == 0)
		write_last_pid(last_pid, want);
	return child < 0 ? child : await_child(child);
}

/* The pid namespace of the task that is asked about, which has to be a container's; or -errno. */
static long open_wanted(const struct helper *helper, long peer,
			const struct pidhelper_request *request)
{
	long namespace = open_namespace(request->pid);
	long error;

	if (namespace < 0)
		return refuse(peer, request, "cannot open the pid namespace", namespace);
	error = check_below(helper, (int)namespace);
	if (!error)
		return namespace;
	sys_close((int)namespace);
	return refuse(peer, request, "not a pid namespace below the helper's own", error);
}

static long choose(const struct helper *helper, long peer, const struct pidhelper_request *request)
{
	long namespace, error;

	if (request->pid <= 0 || request->number < 2 || request->number > PID_MAX_LIMIT)
		return refuse(peer, request, "numbers out of range", -EINVAL);
	namespace = open_wanted(helper, peer, request);
	if (namespace < 0)
		return namespace;
	error = SYS2(__NR_setns, namespace, CLONE_NEWPID);
	sys_close((int)namespace);
	if (error)
		return refuse(peer, request, "cannot join the pid namespace", error);
	error = in_child(helper->last_pid, request->number);
	/* Children are made here again; without that, serving on would be wrong. */
	if (SYS2(__NR_setns, helper->own_namespace, CLONE_NEWPID)) {
		complain("cannot return to the own pid namespace", -EPERM);
		SYS1(__NR_exit_group, 1);
	}
	if (error)
		refuse(peer, request, "cannot write ns_last_pid", error);
	return error;
}

/*
 * In a child, which answers the peer itself: the errno is the exit status. Seized before it is
 * looked at again, for a thread that is traced keeps its number.
 */
static long send_filter(const struct helper *helper, int fd,
			const struct pidhelper_request *request)
{
	struct pidhelper_filter filter;
	long namespace, bytes, error = filter_trace(PTRACE_SEIZE, request->pid, 0, NULL);

	if (error)
		return error;
	namespace = open_namespace(request->pid);
	error = namespace < 0 ? namespace : check_below(helper, (int)namespace);
	if (!error)
		error = filter_take(request->pid, request->number, &filter);
	if (error)
		return error;
	bytes = offsetof(struct pidhelper_filter, instructions) + filter.count * sizeof(uint64_t);
	error = unixsocket_send(fd, &filter, (size_t)bytes);
	return error < 0 ? error : 0;
}

static long give_filter(const struct helper *helper, int fd, long peer,
			const struct pidhelper_request *request)
{
	long namespace, child, error;

	if (request->pid <= 0 || request->number < 0)
		return refuse(peer, request, "numbers out of range", -EINVAL);
	namespace = open_wanted(helper, peer, request);
	if (namespace < 0)
		return namespace;
	sys_close((int)namespace);
	child = SYS5(__NR_clone, SIGCHLD, 0, 0, 0, 0);
	if (child == 0)
		SYS1(__NR_exit_group, -send_filter(helper, fd, request));
	error = child < 0 ? child : await_child(child);
	return error ? refuse(peer, request, "cannot read the filter", error) : 0;
}

/*
 * A stock container has /proc/sys read-only.  A procfs mounted nowhere is not: it
 * is only this descriptor's, and nobody else can reach it.
 */
static long open_last_pid(void)
{
	long fd = sys_openat(AT_FDCWD, LAST_PID, O_WRONLY | O_CLOEXEC, 0);
	long context, mount, error;

	if (fd != -EROFS && fd != -EACCES && fd != -EPERM)
		return fd;
	context = SYS2(__NR_fsopen, "proc", FSOPEN_CLOEXEC);
	if (context < 0)
		return context;
	error = SYS5(__NR_fsconfig, context, FSCONFIG_CMD_CREATE, NULL, NULL, 0);
	mount = error ? error : SYS3(__NR_fsmount, context, FSMOUNT_CLOEXEC, 0);
	sys_close((int)context);
	if (mount < 0)
		return mount;
	fd = sys_openat((int)mount, "sys/kernel/ns_last_pid", O_WRONLY | O_CLOEXEC, 0);
	sys_close((int)mount);
	return fd;
}

static int open_helper(struct helper *helper)
{
	long own = sys_openat(AT_FDCWD, "/proc/self/ns/pid", O_RDONLY | O_CLOEXEC, 0);
	long last = open_last_pid();

	if (own < 0)
		return complain("cannot open /proc/self/ns/pid", own) != 0;
	if (last < 0)
		return complain("cannot open " LAST_PID " for writing", last) != 0;
	helper->own_namespace = (int)own;
	helper->last_pid = (int)last;
	return 0;
}

/* 0 when the peer may ask, else -errno. */
static long check_peer(const struct helper *helper, int fd, long *pid)
{
	struct socket_peer peer = {0};
	long error = unixsocket_peer(fd, &peer);
	long namespace, same;

	if (error)
		return refuse(0, NULL, "no credentials of the peer", error);
	*pid = peer.pid;
	if (peer.uid != 0)
		return refuse(peer.pid, NULL, "its uid is not 0", -EPERM);
	if (peer.pid <= 0)
		return refuse(peer.pid, NULL, "it is in a pid namespace out of sight", -EPERM);
	namespace = open_namespace(peer.pid);
	if (namespace < 0)
		return refuse(peer.pid, NULL, "cannot open its pid namespace", namespace);
	same = same_namespace((int)namespace, helper->own_namespace);
	sys_close((int)namespace);
	if (same != 1)
		return refuse(peer.pid, NULL, "it is in another pid namespace", -EPERM);
	return 0;
}

/* 0 to go on with this peer, anything else to hang up. */
static long answer(const struct helper *helper, int fd, long peer)
{
	struct pidhelper_request request;
	struct pidhelper_reply reply;
	long got = unixsocket_receive(fd, &request, sizeof(request)), error;

	if (got == -EAGAIN || got == -EINTR)
		return 0;
	if (got <= 0)
		return -1;
	if (got != sizeof(request))
		error = refuse(peer, NULL, "message of a wrong size", -EBADMSG);
	else if (request.what == PIDHELPER_CHOOSE)
		error = choose(helper, peer, &request);
	else if (request.what == PIDHELPER_FILTER)
		error = give_filter(helper, fd, peer, &request);
	else
		error = refuse(peer, &request, "unknown request", -EPROTONOSUPPORT);
	if (got == sizeof(request) && request.what == PIDHELPER_FILTER && !error)
		return 0; /* it was sent */
	reply.error = -(int32_t)error;
	got = unixsocket_send(fd, &reply, sizeof(reply));
	return got == sizeof(reply) ? 0 : -1;
}

static long listen_at(const char *path)
{
	struct sockaddr_un address;
	long fd = unixsocket_open(&address, path);
	long error;

	if (fd < 0)
		return fd;
	(void)SYS3(__NR_unlinkat, AT_FDCWD, path, 0);
	SYS1(__NR_umask, 0177);
	error = SYS3(__NR_bind, fd, &address, sizeof(address));
	if (!error)
		error = SYS2(__NR_listen, fd, MAX_PEERS);
	return error ? error : fd;
}

/* Slot 0 is the listening socket; a free slot has fd -1, which ppoll passes over. */
struct table {
	struct sys_pollfd polls[1 + MAX_PEERS];
	long peers[1 + MAX_PEERS];
};

static void admit(const struct helper *helper, struct table *table)
{
	long fd = SYS4(__NR_accept4, table->polls[0].fd, NULL, NULL, SOCKET_CLOEXEC);
	long pid = 0;

	if (fd < 0)
		return;
	if (check_peer(helper, (int)fd, &pid)) {
		sys_close((int)fd);
		return;
	}
	for (int slot = 1; slot <= MAX_PEERS; slot++) {
		if (table->polls[slot].fd >= 0)
			continue;
		table->polls[slot].fd = (int)fd;
		table->peers[slot] = pid;
		return;
	}
	refuse(pid, NULL, "too many connections", -EMFILE);
	sys_close((int)fd);
}

static int serve(const char *path)
{
	struct helper helper;
	struct table table;
	long listener;

	if (open_helper(&helper))
		return 1;
	listener = listen_at(path);
	if (listener < 0)
		return complain(path, listener) != 0;
	for (int slot = 0; slot <= MAX_PEERS; slot++) {
		table.polls[slot] = (struct sys_pollfd){.fd = -1, .events = SYS_POLLIN};
		table.peers[slot] = 0;
	}
	table.polls[0].fd = (int)listener;
	for (;;) {
		long ready = sys_ppoll(table.polls, 1 + MAX_PEERS, NULL);

		if (ready < 0 && ready != -EINTR)
			return complain("ppoll", ready) != 0;
		if (ready <= 0)
			continue;
		for (int slot = 1; slot <= MAX_PEERS; slot++) {
			if (table.polls[slot].fd < 0 || !table.polls[slot].revents)
				continue;
			if (!answer(&helper, table.polls[slot].fd, table.peers[slot]))
				continue;
			sys_close(table.polls[slot].fd);
			table.polls[slot].fd = -1;
		}
		if (table.polls[0].revents)
			admit(&helper, &table);
	}
}

static int set_once(const char *pid_text, const char *want_text)
{
	struct pidhelper_request request = {
		.what = PIDHELPER_CHOOSE,
		.pid = (int32_t)text_number(pid_text, PID_MAX_LIMIT),
		.number = (int32_t)text_number(want_text, PID_MAX_LIMIT),
	};
	struct helper helper;

	if (open_helper(&helper))
		return 1;
	return choose(&helper, SYS0(__NR_getpid), &request) ? 1 : 0;
}

static int pidhelper_main(long *stack)
{
	struct line line = {.used = 0};
	long count = stack[0];
	char **arguments = (char **)(stack + 1);

	/* Its children stand in containers for a moment: nobody there may look into them. */
	SYS5(__NR_prctl, PR_SET_DUMPABLE, 0, 0, 0, 0);
	if (count == 1)
		return serve(PIDHELPER_SOCKET);
	if (count == 3 && text_equal(arguments[1], "--socket"))
		return serve(arguments[2]);
	if (count == 4 && text_equal(arguments[1], "set"))
		return set_once(arguments[2], arguments[3]);
	line_add(&line, "usage: pidhelper [--socket PATH | set PID WANT]");
	line_write(&line, STDERR);
	return EXIT_USAGE;
}
