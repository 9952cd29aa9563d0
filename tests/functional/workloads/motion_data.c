/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Bytes and messages that go round all the time: through pipes and sockets of all sorts, by copies
 * inside of the kernel, with descriptors on their way. Each receiver knows what comes next.
 */
#include "motion_base.h"
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/stat.h>
#include <sys/sendfile.h>
#include <sys/uio.h>
#include <sys/un.h>

#define RING 4
#define END UINT64_MAX

static int from[RING], to[RING]; /* from[i] is where worker i reads */

static void exact(int fd, void *at, size_t size)
{
	for (size_t done = 0; done < size;) {
		ssize_t got = read(fd, (char *)at + done, size - done);

		if (got <= 0)
			bad("fd %d: read gives %zd of %zu after %zu (errno %d: %s)", fd, got, size,
			    done, errno, strerror(errno));
		done += got;
	}
}

static void whole(int fd, const void *at, size_t size)
{
	for (size_t done = 0; done < size;) {
		ssize_t put_ = write(fd, (const char *)at + done, size - done);

		if (put_ <= 0)
			bad("fd %d: write gives %zd (errno %d: %s)", fd, put_, errno,
			    strerror(errno));
		done += put_;
	}
}

/* A token goes round: each adds one. The first worker knows what has to come back. */
static void ring(int number)
{
	uint64_t token = 0, came;

	if (number == 0)
		whole(to[0], &token, sizeof(token));
	for (uint64_t round = 0;; round++) {
		exact(from[number], &came, sizeof(came));
		if (came == END) {
			if (number < RING - 1)
				whole(to[number], &came, sizeof(came));
			return;
		}
		SAME(came, number ? round * RING + number - 1 : round * RING + RING - 1);
		token = came + 1;
		tick(number);
		if (number == 0 && !going()) {
			token = END;
			whole(to[0], &token, sizeof(token));
			return;
		}
		whole(to[number], &token, sizeof(token));
	}
}

static void make_ring(int (*pair)(int ends[2]))
{
	for (int i = 0; i < RING; i++) {
		int ends[2];

		CHECK(pair(ends) == 0);
		from[(i + 1) % RING] = ends[0];
		to[i] = ends[1];
	}
	start_workers(RING, ring);
	finish();
}

static int stream_pair(int ends[2])
{
	return socketpair(AF_UNIX, SOCK_STREAM, 0, ends);
}

static int packet_pair(int ends[2])
{
	return socketpair(AF_UNIX, SOCK_SEQPACKET, 0, ends);
}

static int datagram_pair(int ends[2])
{
	return socketpair(AF_UNIX, SOCK_DGRAM, 0, ends);
}

static int fifo_pair(int ends[2])
{
	static int count;
	char path[4096];

	snprintf(path, sizeof(path), "%s/fifo%d", folder, count++);
	CHECK(mkfifo(path, 0600) == 0);
	ends[0] = open(path, O_RDWR);
	ends[1] = open(path, O_WRONLY);
	return ends[0] < 0 || ends[1] < 0;
}

static struct sockaddr_in loopback(int port)
{
	return (struct sockaddr_in){ .sin_family = AF_INET,
				     .sin_port = htons(port),
				     .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
}

static int tcp_listener(struct sockaddr_in *at)
{
	socklen_t size = sizeof(*at);
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	*at = loopback(0);
	int one = 1;

	CHECK(fd >= 0 && setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one)) == 0);
	CHECK(bind(fd, (void *)at, size) == 0 && listen(fd, 16) == 0);
	CHECK(getsockname(fd, (void *)at, &size) == 0);
	return fd;
}

static int tcp_pair(int ends[2])
{
	struct sockaddr_in at;
	int listener = tcp_listener(&at);

	ends[1] = socket(AF_INET, SOCK_STREAM, 0);
	CHECK(connect(ends[1], (void *)&at, sizeof(at)) == 0);
	ends[0] = accept(listener, NULL, NULL);
	return ends[0] < 0 || close(listener);
}

static int udp_pair(int ends[2])
{
	for (int i = 0; i < 2; i++) {
		struct sockaddr_in at = loopback(0);

		ends[i] = socket(AF_INET, SOCK_DGRAM, 0);
		CHECK(bind(ends[i], (void *)&at, sizeof(at)) == 0);
	}
	for (int i = 0; i < 2; i++) {
		struct sockaddr_in at;
		socklen_t size = sizeof(at);

		CHECK(getsockname(ends[!i], (void *)&at, &size) == 0);
		CHECK(connect(ends[i], (void *)&at, size) == 0);
	}
	return 0;
}

#define RING_OF(name, pair) \
	static void run_##name(void) { make_ring(pair); }
RING_OF(pipe, pipe)
RING_OF(stream, stream_pair)
RING_OF(packet, packet_pair)
RING_OF(datagram, datagram_pair)
RING_OF(fifo, fifo_pair)
RING_OF(tcp, tcp_pair)
RING_OF(udp, udp_pair)

/* A flood: as many bytes as go, in pieces of all sizes; the receiver knows each of them. */
static uint64_t next(uint64_t *state)
{
	*state ^= *state << 13, *state ^= *state >> 7, *state ^= *state << 17;
	return *state;
}

static int flood_in, flood_out;

static void source(int number)
{
	static uint64_t words[8192];
	uint64_t state = 88172645463325252, sizes = 1234567;

	while (going()) {
		size_t count = 1 + next(&sizes) % 8192;

		for (size_t i = 0; i < count; i++)
			words[i] = next(&state);
		whole(flood_in, words, count * sizeof(*words));
		tick(number);
	}
	CHECK(close(flood_in) == 0);
}

static void sink(int number)
{
	static unsigned char bytes[50000];
	uint64_t state = 88172645463325252, sizes = 7654321, word = 0;
	size_t at = 0;

	close(flood_in);
	for (;;) {
		ssize_t got = read(flood_out, bytes, 1 + next(&sizes) % sizeof(bytes));

		if (got == 0 && !going())
			return;
		CHECK(got > 0);
		for (ssize_t i = 0; i < got; i++, at++) {
			if (at % 8 == 0)
				word = next(&state);
			if (bytes[i] != (unsigned char)(word >> at % 8 * 8))
				bad("byte %zu is %d, not %d", at, bytes[i],
				    (unsigned char)(word >> at % 8 * 8));
		}
		tick(number);
	}
}

static void flood(int (*pair)(int ends[2]))
{
	int ends[2];

	CHECK(pair(ends) == 0);
	flood_out = ends[0], flood_in = ends[1];
	start_workers(1, source);
	start_workers(1, sink);
	close(flood_in);
	close(flood_out);
	finish();
}

#define FLOOD_OF(name, pair) \
	static void run_##name(void) { flood(pair); }
FLOOD_OF(flood_pipe, pipe)
FLOOD_OF(flood_stream, stream_pair)
FLOOD_OF(flood_tcp, tcp_pair)

/* Descriptors on their way: a pipe with a word in it is sent, and read by who gets it. */
static void send_fd(int number)
{
	for (uint64_t i = 0; going(); i++) {
		union {
			struct cmsghdr header;
			char room[CMSG_SPACE(2 * sizeof(int))];
		} control = { 0 };
		int ends[2], more;
		struct iovec data = { &i, sizeof(i) };
		struct msghdr message = { .msg_iov = &data, .msg_iovlen = 1,
					  .msg_control = &control,
					  .msg_controllen = sizeof(control) };

		CHECK(pipe(ends) == 0 && (more = open("/dev/null", O_RDONLY)) >= 0);
		whole(ends[1], &i, sizeof(i));
		control.header = (struct cmsghdr){ .cmsg_len = CMSG_LEN(2 * sizeof(int)),
						   .cmsg_level = SOL_SOCKET,
						   .cmsg_type = SCM_RIGHTS };
		memcpy(CMSG_DATA(&control.header), (int[]){ ends[0], more }, 2 * sizeof(int));
		SAME(sendmsg(flood_in, &message, 0), sizeof(i));
		CHECK(close(ends[0]) == 0 && close(ends[1]) == 0 && close(more) == 0);
		tick(number);
	}
	CHECK(close(flood_in) == 0);
}

static void receive_fd(int number)
{
	close(flood_in);
	for (uint64_t i = 0;; i++) {
		union {
			struct cmsghdr header;
			char room[CMSG_SPACE(2 * sizeof(int))];
		} control;
		uint64_t number_of_it = 0, word = 0;
		int fds[2];
		struct iovec data = { &number_of_it, sizeof(number_of_it) };
		struct msghdr message = { .msg_iov = &data, .msg_iovlen = 1,
					  .msg_control = &control,
					  .msg_controllen = sizeof(control) };
		ssize_t got = recvmsg(flood_out, &message, 0);

		if (got == 0 && !going())
			return;
		SAME(got, sizeof(number_of_it));
		SAME(number_of_it, i);
		SAME(message.msg_controllen, CMSG_SPACE(2 * sizeof(int)));
		memcpy(fds, CMSG_DATA(&control.header), sizeof(fds));
		exact(fds[0], &word, sizeof(word));
		SAME(word, i);
		SAME(read(fds[0], &word, 1), 0);
		CHECK(close(fds[0]) == 0 && close(fds[1]) == 0);
		tick(number);
	}
}

static void sending(int (*pair)(int ends[2]))
{
	int ends[2];

	CHECK(pair(ends) == 0);
	flood_out = ends[0], flood_in = ends[1];
	start_workers(1, send_fd);
	start_workers(1, receive_fd);
	close(flood_in);
	close(flood_out);
	finish();
}

static void run_rights(void)
{
	sending(packet_pair);
}

static void run_rights_stream(void)
{
	sending(stream_pair);
}

/* Clients that come, ask once, and go. */
static struct sockaddr_in server_at;
static struct sockaddr_un local_at = { .sun_family = AF_UNIX };
static int server, is_local;

static void serve(int number)
{
	for (;;) {
		struct pollfd watched = { server, POLLIN, 0 };
		uint64_t asked_;

		SAME(poll(&watched, 1, 100) < 0, 0);
		if (!watched.revents) {
			if (!going())
				return;
			continue;
		}
		int client = accept(server, NULL, NULL);

		if (client < 0 && errno == EAGAIN) /* another one was quicker */
			continue;
		CHECK(client >= 0);
		exact(client, &asked_, sizeof(asked_));
		asked_ *= 3;
		whole(client, &asked_, sizeof(asked_));
		CHECK(close(client) == 0);
		tick(number);
	}
}

static void ask(int number)
{
	close(server);
	for (uint64_t i = 0; going(); i++) {
		uint64_t word = i, extra;
		int fd = socket(is_local ? AF_UNIX : AF_INET, SOCK_STREAM, 0);
		int one = 1;

		CHECK(fd >= 0);
		if (is_local) {
			CHECK(connect(fd, (void *)&local_at, sizeof(local_at)) == 0);
		} else {
			struct linger at_once = { 1, 0 };

			CHECK(setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one)) == 0);
			CHECK(connect(fd, (void *)&server_at, sizeof(server_at)) == 0);
			if (i % 2) /* no TIME_WAIT */
				CHECK(setsockopt(fd, SOL_SOCKET, SO_LINGER, &at_once,
						 sizeof(at_once)) == 0);
		}
		whole(fd, &word, sizeof(word));
		exact(fd, &word, sizeof(word));
		SAME(word, 3 * i);
		SAME(read(fd, &extra, sizeof(extra)), 0);
		CHECK(close(fd) == 0);
		tick(number);
		if (!is_local)
			usleep(500); /* ports are few */
	}
}

static void run_clients_tcp(void)
{
	server = tcp_listener(&server_at);
	CHECK(fcntl(server, F_SETFL, O_NONBLOCK) == 0);
	start_workers(2, serve);
	start_workers(2, ask);
	finish();
}

static void run_clients_unix(void)
{
	is_local = 1;
	snprintf(local_at.sun_path, sizeof(local_at.sun_path), "%s/socket", folder);
	server = socket(AF_UNIX, SOCK_STREAM, 0);
	CHECK(bind(server, (void *)&local_at, sizeof(local_at)) == 0 && listen(server, 8) == 0);
	start_workers(1, serve);
	start_workers(2, ask);
	finish();
}

/* splice, tee and vmsplice between pipes, and sendfile out of a file. */
static void splices(int number)
{
	static uint64_t words[4096];
	uint64_t state = 5, got[4096];
	int first[2], second[2], third[2];
	char path[4096];

	snprintf(path, sizeof(path), "%s/sent%d", folder, number);
	int file = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);

	CHECK(file >= 0 && pipe(first) == 0 && pipe(second) == 0 && pipe(third) == 0);
	while (going()) {
		size_t size = (1 + next(&state) % 4096) * sizeof(*words);
		struct iovec piece = { words, size };
		ssize_t spliced = 0;

		for (size_t i = 0; i < size / 8; i++)
			words[i] = next(&state);
		SAME(vmsplice(first[1], &piece, 1, 0), size);
		SAME(tee(first[0], third[1], size, 0), size);
		while (spliced < (ssize_t)size) {
			ssize_t part = splice(first[0], NULL, second[1], NULL, size - spliced, 0);

			CHECK(part > 0);
			spliced += part;
		}
		exact(second[0], got, size);
		SAME(memcmp(got, words, size), 0);
		exact(third[0], got, size);
		SAME(memcmp(got, words, size), 0);
		SAME(pwrite(file, words, size, 0), size);
		off_t at = 0;

		for (size_t sent = 0; sent < size;) {
			ssize_t part = sendfile(second[1], file, &at, size - sent);

			CHECK(part > 0);
			sent += part;
		}
		SAME(at, size);
		exact(second[0], got, size);
		SAME(memcmp(got, words, size), 0);
		tick(number);
	}
}

static void run_splices(void)
{
	start_workers(2, splices);
	finish();
}

int main(int argc, char **argv)
{
	static const struct mode modes[] = {
		{ "pipe", run_pipe },
		{ "stream", run_stream },
		{ "packet", run_packet },
		{ "datagram", run_datagram },
		{ "fifo", run_fifo },
		{ "tcp", run_tcp },
		{ "udp", run_udp },
		{ "flood_pipe", run_flood_pipe },
		{ "flood_stream", run_flood_stream },
		{ "flood_tcp", run_flood_tcp },
		{ "rights", run_rights },
		{ "rights_stream", run_rights_stream },
		{ "clients_tcp", run_clients_tcp },
		{ "clients_unix", run_clients_unix },
		{ "splices", run_splices },
		{ NULL, NULL },
	};

	CHECK(argc > 2);
	return run_mode(argv, modes);
}
