/* SPDX-License-Identifier: Apache-2.0 */
/*
 * As core_blocked, calls that are seldom: locks, System V and POSIX queues, futexes with owners,
 * signal waits. None may return before it has a reason to, and none with EINTR because of us.
 */
#include "core_base.h"

#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/wait.h>

static int ends[2], queue, set_of_one;
static char path[4096];
static sem_t posix_semaphore;
static pthread_mutex_t mutex, inheriting;
static pthread_cond_t condition = PTHREAD_COND_INITIALIZER;
static volatile int may_return, flag;
static pid_t child;
static pthread_t main_thread;

static void wake_pipe(void)
{
	CHECK(write(ends[1], "x", 1) == 1);
}

static void wake_signal(void)
{
	CHECK(kill(getpid(), SIGUSR1) == 0);
}

static void select_long(void)
{
	struct timeval hour = { 3600, 0 };
	fd_set set;

	FD_ZERO(&set);
	FD_SET(ends[0], &set);
	SAME(select(ends[0] + 1, &set, 0, 0, &hour), 1);
}

static void pselect_long(void)
{
	struct timespec hour = { 3600, 0 };
	sigset_t all;
	fd_set set;

	sigfillset(&all);
	FD_ZERO(&set);
	FD_SET(ends[0], &set);
	SAME(pselect(ends[0] + 1, &set, 0, 0, &hour, &all), 1);
}

static void ppoll_long(void)
{
	struct timespec hour = { 3600, 0 };
	struct pollfd one = { .fd = ends[0], .events = POLLIN };
	sigset_t all;

	sigfillset(&all);
	SAME(ppoll(&one, 1, &hour, &all), 1);
}

static void epoll_pwait_long(void)
{
	struct epoll_event one = { .events = EPOLLIN };
	int watch = epoll_create1(0);
	sigset_t all;

	sigfillset(&all);
	CHECK(!epoll_ctl(watch, EPOLL_CTL_ADD, ends[0], &one));
	SAME(epoll_pwait(watch, &one, 1, 3600000, &all), 1);
}

static void semaphore_down(void)
{
	struct sembuf down = { 0, -1, 0 };

	SAME(semop(set_of_one, &down, 1), 0);
}

static void semaphore_down_timed(void)
{
	struct sembuf down = { 0, -1, 0 };
	struct timespec hour = { 3600, 0 };

	SAME(semtimedop(set_of_one, &down, 1, &hour), 0);
}

static void semaphore_up(void)
{
	struct sembuf up = { 0, 1, 0 };

	CHECK(!semop(set_of_one, &up, 1));
}

static void message_in(void)
{
	struct {
		long type;
		char text[8];
	} got;

	SAME(msgrcv(queue, &got, 8, 0, 0), 3);
}

static void message_out(void)
{
	struct {
		long type;
		char text[8];
	} sent = { 1, "abc" };

	CHECK(!msgsnd(queue, &sent, 3, 0));
}

static void flock_wait(void)
{
	int fd = open(path, O_RDWR);

	SAME(flock(fd, LOCK_EX), 0);
}

static int locked = -1;

static void unlock(void)
{
	CHECK(!flock(locked, LOCK_UN));
}

static void record_wait(void)
{
	struct flock whole = { .l_type = F_WRLCK };
	int fd = open(path, O_RDWR);

	SAME(fcntl(fd, F_OFD_SETLKW, &whole), 0);
}

static void record_free(void)
{
	struct flock whole = { .l_type = F_UNLCK };

	CHECK(!fcntl(locked, F_OFD_SETLK, &whole));
}

static void mutex_wait(void)
{
	SAME(pthread_mutex_lock(&mutex), 0);
}

static void mutex_free(void)
{
	CHECK(!pthread_mutex_unlock(&mutex));
}

static void inheriting_wait(void)
{
	SAME(pthread_mutex_lock(&inheriting), 0);
}

static void inheriting_free(void)
{
	CHECK(!pthread_mutex_unlock(&inheriting));
}

static void condition_wait(void)
{
	struct timespec late;

	clock_gettime(CLOCK_REALTIME, &late);
	late.tv_sec += 3600;
	pthread_mutex_lock(&mutex);
	while (!flag)
		SAME(pthread_cond_timedwait(&condition, &mutex, &late), 0);
	pthread_mutex_unlock(&mutex);
}

static void condition_met(void)
{
	pthread_mutex_lock(&mutex);
	flag = 1;
	pthread_cond_signal(&condition);
	pthread_mutex_unlock(&mutex);
}

static void sem_waits(void)
{
	SAME(sem_wait(&posix_semaphore), 0);
}

static void sem_posted(void)
{
	CHECK(!sem_post(&posix_semaphore));
}

static void paused(void)
{
	SAME(pause(), -1);
	SAME(errno, EINTR); /* its only way to return */
}

static void child_gone(void)
{
	siginfo_t info;

	SAME(waitid(P_PID, child, &info, WEXITED), 0);
	SAME(info.si_status, SIGTERM);
}

static void end_child(void)
{
	CHECK(!kill(child, SIGTERM));
}

static void fifo_opened(void)
{
	CHECK(open(path, O_RDONLY) >= 0);
}

static void open_fifo(void)
{
	CHECK(open(path, O_WRONLY) >= 0);
}

static void nothing(void)
{
}

static void timer_read(void)
{
	struct itimerspec soon = { { 0, 0 }, { 3, 0 } };
	int fd = timerfd_create(CLOCK_MONOTONIC, 0);
	uint64_t ticks;

	may_return = 1; /* by the clock */
	CHECK(!timerfd_settime(fd, 0, &soon, 0));
	SAME(read(fd, &ticks, 8), 8);
	SAME(ticks, 1);
}

static void signal_read(void)
{
	struct signalfd_siginfo info;
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	SAME(read(signalfd(-1, &set, 0), &info, sizeof(info)), sizeof(info));
	SAME(info.ssi_signo, SIGUSR1);
}

static void notify_read(void)
{
	char room[4096];
	int fd = inotify_init();

	CHECK(inotify_add_watch(fd, path, IN_ATTRIB) >= 0);
	CHECK(read(fd, room, sizeof(room)) > 0);
}

static void touch(void)
{
	CHECK(!chmod(path, 0600));
}

static void joined(void)
{
	SAME(pthread_join(main_thread, 0), 0);
}

static const struct {
	const char *name;
	void (*call)(void), (*wake)(void);
} calls[] = {
	{ "select_timed", select_long, wake_pipe },
	{ "pselect_timed", pselect_long, wake_pipe },
	{ "ppoll_timed", ppoll_long, wake_pipe },
	{ "epoll_pwait", epoll_pwait_long, wake_pipe },
	{ "semop", semaphore_down, semaphore_up },
	{ "semtimedop", semaphore_down_timed, semaphore_up },
	{ "msgrcv", message_in, message_out },
	{ "flock", flock_wait, unlock },
	{ "ofd_lock", record_wait, record_free },
	{ "mutex", mutex_wait, mutex_free },
	{ "mutex_pi", inheriting_wait, inheriting_free },
	{ "condition", condition_wait, condition_met },
	{ "sem_wait", sem_waits, sem_posted },
	{ "pause", paused, wake_signal },
	{ "waitid", child_gone, end_child },
	{ "open_fifo", fifo_opened, open_fifo },
	{ "read_timerfd", timer_read, nothing },
	{ "read_signalfd", signal_read, wake_signal },
	{ "read_inotify", notify_read, touch },
	{ "join", joined, 0 },
};

static void *body(void *index)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	if (calls[(long)index].call == paused)
		pthread_sigmask(SIG_UNBLOCK, &set, 0);
	calls[(long)index].call();
	if (!may_return)
		bad("%s has returned before it had a reason", calls[(long)index].name);
	if (calls[(long)index].call == joined) {
		good();
		_exit(0);
	}
	return 0;
}

static void handled(int number)
{
	(void)number;
}

static void prepare(const char *name)
{
	pthread_mutexattr_t kind;

	CHECK(!pipe(ends) && !sem_init(&posix_semaphore, 0, 0));
	snprintf(path, sizeof(path), "%s/object", folder);
	if (!strcmp(name, "open_fifo"))
		CHECK(!mkfifo(path, 0600));
	else
		close(open(path, O_CREAT | O_RDWR, 0600));
	pthread_mutexattr_init(&kind);
	pthread_mutexattr_setprotocol(&kind, PTHREAD_PRIO_INHERIT);
	CHECK(!pthread_mutex_init(&mutex, 0) && !pthread_mutex_init(&inheriting, &kind));
	if (strcmp(name, "condition"))
		CHECK(!pthread_mutex_lock(&mutex));
	CHECK(!pthread_mutex_lock(&inheriting));
	locked = open(path, O_RDWR | O_NONBLOCK);
	if (!strcmp(name, "flock"))
		CHECK(!flock(locked, LOCK_EX));
	if (!strcmp(name, "ofd_lock")) {
		struct flock whole = { .l_type = F_WRLCK };

		CHECK(!fcntl(locked, F_OFD_SETLK, &whole));
	}
	if (!strcmp(name, "open_fifo"))
		close(locked);
	if (!strncmp(name, "sem", 3))
		CHECK((set_of_one = semget(IPC_PRIVATE, 1, 0600)) >= 0);
	if (!strcmp(name, "msgrcv"))
		CHECK((queue = msgget(IPC_PRIVATE, 0600)) >= 0);
	if (!strcmp(name, "waitid")) {
		child = fork();
		if (!child)
			for (;;)
				pause();
	}
}

int main(int argc, char **argv)
{
	pthread_t thread;
	sigset_t set;
	long i = 0;

	begin(argv);
	CHECK(argc == 3);
	while (strcmp(calls[i].name, argv[2]))
		CHECK(++i < (long)(sizeof(calls) / sizeof(calls[0])));
	prepare(argv[2]);
	main_thread = pthread_self();
	signal(SIGUSR1, handled);
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	sigprocmask(SIG_BLOCK, &set, 0);
	CHECK(!pthread_create(&thread, 0, body, (void *)i));
	rest(200);
	ready();
	await_go();
	may_return = 1;
	if (!calls[i].wake)
		pthread_exit(0);
	calls[i].wake();
	CHECK(!pthread_join(thread, 0));
	if (set_of_one)
		semctl(set_of_one, 0, IPC_RMID);
	if (queue)
		msgctl(queue, IPC_RMID, 0);
	good();
	return 0;
}
