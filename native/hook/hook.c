/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Asks the agent of this node for a checkpoint and waits for it.
 *
 *   torpor-hook checkpoint [OPTIONS]   from a preStop command: one's own pod;
 *                                      as root of the node: --namespace and --pod
 *   torpor-hook oci [OPTIONS]          as a hook of an OCI runtime: the container
 *                                      whose state comes on stdin
 *   torpor-hook health [--socket S]
 *
 *   --socket S          default: packet.sock beside this program
 *   --wait 25s          at most so long (ms, s, m); default 5m
 *   --after stop        the pod does not run on after the cut (default: continue)
 *   --reason TEXT       for people
 *   --namespace N --pod P
 *
 * Exit status: 0 the checkpoint is ready, 1 it failed or was refused, 2 wrong
 * arguments, 3 the wait is over and the work goes on, 4 no service answers.
 *
 * It is static and has no libc, because it runs inside other people's images,
 * bind-mounted there.  gRPC is HTTP/2 with header compression, too much for
 * that; so it speaks the same messages (plugin/proto/hook.proto) in packets.
 *
 * Rules for editing: as in placeholder.c.
 */
#include <linux/time.h>

#include "hook/statejson.h"
#include "torpor/sys.h"
#include "torpor/text.h"
#include "torpor/unixsocket.h"
#include "torpor/wire.h"

#define PACKET_BYTES 16384
#define STATE_BYTES 65536
#define DEFAULT_WAIT_MS 300000
#define MAX_WAIT_MS 86400000
#define GRACE_MS 2000
#define STDIN 0
#define STDERR 2

#define EXIT_READY 0
#define EXIT_FAILED 1
#define EXIT_USAGE 2
#define EXIT_RUNNING 3
#define EXIT_NO_SERVICE 4
#define GO_ON (-1)

/* Numbers of plugin/proto/hook.proto; a test compares. */
enum { CALL_CHECKPOINT = 1, CALL_HEALTH = 2 };
enum { ANSWER_EVENT = 1, ANSWER_HEALTH = 2 };
enum { EVENT_PROGRESS = 1, EVENT_RESULT = 2 };
enum {
	REQUEST_NAMESPACE = 1,
	REQUEST_POD = 2,
	REQUEST_CONTAINER_ID = 3,
	REQUEST_REASON = 4,
	REQUEST_WAIT_MS = 5,
	REQUEST_AFTER = 6,
};
enum { PROGRESS_PHASE = 2, PROGRESS_TEXT = 3 };
enum { RESULT_OUTCOME = 1, RESULT_CHECKPOINT = 2, RESULT_REASON = 3, RESULT_MESSAGE = 4 };
enum { OUTCOME_READY = 1, OUTCOME_FAILED = 2, OUTCOME_RUNNING = 3, OUTCOME_REFUSED = 4 };
enum { AFTER_CONTINUE = 0, AFTER_STOP = 1 };

struct options {
	const char *socket;
	const char *namespace;
	const char *pod;
	const char *reason;
	const char *container;
	size_t container_bytes;
	uint64_t wait_ms;
	int after;
};

TORPOR_ENTRY(hook_main);

static int complain(const char *what, const char *subject, long error)
{
	struct line line = {.used = 0};

	line_add(&line, "torpor-hook: ");
	line_add(&line, what);
	line_add(&line, " ");
	line_add(&line, subject);
	if (error) {
		line_add(&line, ": errno ");
		line_add_number(&line, -error);
	}
	line_write(&line, STDERR);
	return EXIT_FAILED;
}

static int usage(void)
{
	complain("usage: torpor-hook checkpoint|oci|health [--socket S] [--wait 25s]",
		 "[--after stop|continue] [--reason TEXT] [--namespace N --pod P]", 0);
	return EXIT_USAGE;
}

static uint64_t now_ms(void)
{
	struct sys_timespec now = {0};

	SYS2(__NR_clock_gettime, CLOCK_MONOTONIC, &now);
	return (uint64_t)now.seconds * 1000 + (uint64_t)now.nanoseconds / 1000000;
}

/* "25s", "500ms", "2m" or seconds without a unit; 0 when it is none of them. */
static uint64_t parse_wait(const char *text)
{
	uint64_t number = 0;

	if (*text < '0' || *text > '9')
		return 0;
	for (; *text >= '0' && *text <= '9'; text++) {
		number = number * 10 + (uint64_t)(*text - '0');
		if (number > MAX_WAIT_MS)
			return 0;
	}
	if (text_equal(text, "ms"))
		return number;
	if (text_equal(text, "m"))
		number *= 60;
	else if (*text && !text_equal(text, "s"))
		return 0;
	number *= 1000;
	return number > MAX_WAIT_MS ? 0 : number;
}

static int parse_options(char **arguments, struct options *options)
{
	for (; *arguments; arguments += 2) {
		const char *name = arguments[0], *value = arguments[1];

		if (!value)
			return 0;
		if (text_equal(name, "--socket"))
			options->socket = value;
		else if (text_equal(name, "--namespace"))
			options->namespace = value;
		else if (text_equal(name, "--pod"))
			options->pod = value;
		else if (text_equal(name, "--reason"))
			options->reason = value;
		else if (text_equal(name, "--wait") && parse_wait(value))
			options->wait_ms = parse_wait(value);
		else if (text_equal(name, "--after") && text_equal(value, "stop"))
			options->after = AFTER_STOP;
		else if (text_equal(name, "--after") && text_equal(value, "continue"))
			options->after = AFTER_CONTINUE;
		else
			return 0;
	}
	return 1;
}

static void put_text(struct wire_out *out, unsigned int tag, const char *text)
{
	if (text)
		wire_put_bytes(out, tag, text, text_length(text));
}

/* The Call, in `packet`; its length, or 0 when it does not fit. */
static size_t build_call(const struct options *options, int call, uint8_t *packet)
{
	uint8_t body[PACKET_BYTES / 2];
	struct wire_out request = {.bytes = body, .room = sizeof(body)};
	struct wire_out out = {.bytes = packet, .room = PACKET_BYTES};

	if (call == CALL_CHECKPOINT) {
		put_text(&request, REQUEST_NAMESPACE, options->namespace);
		put_text(&request, REQUEST_POD, options->pod);
		if (options->container)
			wire_put_bytes(&request, REQUEST_CONTAINER_ID, options->container,
				       options->container_bytes);
		put_text(&request, REQUEST_REASON, options->reason);
		wire_put_number(&request, REQUEST_WAIT_MS, options->wait_ms);
		wire_put_number(&request, REQUEST_AFTER, (uint64_t)options->after);
	}
	wire_put_bytes(&out, (unsigned int)call, body, request.used);
	return request.full || out.full ? 0 : out.used;
}

/* ": TEXT" with bytes that a terminal might obey taken out. */
static void add_text(struct line *line, const struct wire_in *bytes)
{
	line_add(line, ": ");
	for (const uint8_t *at = bytes->at; at < bytes->end; at++) {
		char byte = *at < 0x20 || *at == 0x7f ? ' ' : (char)*at;

		line_add_bytes(line, &byte, 1);
	}
}

static int end_of(uint64_t outcome)
{
	if (outcome == OUTCOME_READY)
		return EXIT_READY;
	if (outcome == OUTCOME_RUNNING)
		return EXIT_RUNNING;
	return EXIT_FAILED;
}

static int take_result(struct wire_in result)
{
	static const char *const words[] = {
		"ended in an unknown way", "checkpoint is ready", "checkpoint failed",
		"still in progress",	   "refused",
	};
	struct line line = {.used = 0};
	struct wire_field field;
	uint64_t outcome = 0;
	struct wire_in all = result;

	while (wire_next(&result, &field) > 0)
		if (field.tag == RESULT_OUTCOME)
			outcome = field.number;
	line_add(&line, "torpor-hook: ");
	line_add(&line, words[outcome <= OUTCOME_REFUSED ? outcome : 0]);
	while (wire_next(&all, &field) > 0)
		if (field.tag >= RESULT_CHECKPOINT && field.tag <= RESULT_MESSAGE)
			add_text(&line, &field.bytes);
	line_write(&line, STDERR);
	return end_of(outcome);
}

static int take_progress(struct wire_in progress)
{
	struct line line = {.used = 0};
	struct wire_field field;

	line_add(&line, "torpor-hook");
	while (wire_next(&progress, &field) > 0)
		if (field.tag == PROGRESS_PHASE || field.tag == PROGRESS_TEXT)
			add_text(&line, &field.bytes);
	line_write(&line, STDERR);
	return GO_ON;
}

/* GO_ON, or the exit status. */
static int take_answer(struct wire_in answer)
{
	struct wire_field outer, inner;

	if (wire_next(&answer, &outer) <= 0)
		return complain("cannot understand", "the answer", 0);
	if (outer.tag == ANSWER_HEALTH)
		return EXIT_READY;
	if (outer.tag != ANSWER_EVENT || wire_next(&outer.bytes, &inner) <= 0)
		return complain("cannot understand", "the answer", 0);
	if (inner.tag == EVENT_PROGRESS)
		return take_progress(inner.bytes);
	if (inner.tag == EVENT_RESULT)
		return take_result(inner.bytes);
	return GO_ON; /* an event of a newer service */
}

static int hear(int fd, uint64_t deadline_ms)
{
	uint8_t packet[PACKET_BYTES];

	for (;;) {
		struct sys_pollfd poll = {.fd = fd, .events = SYS_POLLIN};
		uint64_t now = now_ms();
		uint64_t left = deadline_ms > now ? deadline_ms - now : 0;
		struct sys_timespec wait = {
			.seconds = (int64_t)(left / 1000),
			.nanoseconds = (int64_t)(left % 1000) * 1000000,
		};
		long got = sys_ppoll(&poll, 1, &wait);
		int end;

		if (got == -EINTR)
			continue;
		if (got == 0) {
			complain("waited for", "the result in vain", 0);
			return EXIT_RUNNING;
		}
		got = unixsocket_receive(fd, packet, sizeof(packet));
		if (got == -EAGAIN || got == -EINTR)
			continue;
		if (got <= 0 || (size_t)got > sizeof(packet)) {
			complain("the service hung up", "", got < 0 ? got : 0);
			return EXIT_NO_SERVICE;
		}
		end = take_answer((struct wire_in){.at = packet, .end = packet + got});
		if (end != GO_ON)
			return end;
	}
}

static int ask(const struct options *options, int call)
{
	uint8_t packet[PACKET_BYTES];
	size_t count = build_call(options, call, packet);
	struct sockaddr_un address;
	uint64_t deadline_ms = now_ms() + options->wait_ms + GRACE_MS;
	long fd, error;

	if (!count)
		return complain("too long:", "the request", 0);
	fd = unixsocket_open(&address, options->socket);
	error = fd < 0 ? fd : SYS3(__NR_connect, fd, &address, sizeof(address));
	if (!error)
		error = unixsocket_send((int)fd, packet, count);
	if (error < 0) {
		complain("no service at", options->socket, error);
		return EXIT_NO_SERVICE;
	}
	return hear((int)fd, deadline_ms);
}

/* Reads the state until the runtime closes its end; its "id" becomes the container. */
static int read_state(char *text, struct options *options)
{
	size_t used = 0;
	long got, length;

	do {
		got = sys_read(STDIN, text + used, STATE_BYTES - used);
		if (got == -EINTR)
			continue;
		if (got < 0)
			return complain("cannot read the state from", "stdin", got);
		used += (size_t)got;
	} while (got && used < STATE_BYTES);
	length = state_string(text, used, "id", &options->container);
	if (length <= 0)
		return complain("no id in the state from", "stdin", 0);
	options->container_bytes = (size_t)length;
	return 0;
}

/* packet.sock in the directory of the program, which is how it is mounted into containers. */
static const char *beside(const char *program, char *path, size_t room)
{
	static const char name[] = "packet.sock";
	size_t length = text_length(program);

	while (length && program[length - 1] != '/')
		length--;
	if (!length || length + sizeof(name) > room)
		return "/run/torpor-hook/packet.sock";
	for (size_t i = 0; i < length; i++)
		path[i] = program[i];
	for (size_t i = 0; i < sizeof(name); i++)
		path[length + i] = name[i];
	return path;
}

static int hook_main(long *stack)
{
	char **arguments = (char **)(stack + 1);
	struct options options = {.wait_ms = DEFAULT_WAIT_MS};
	char path[128], state[STATE_BYTES];

	if (stack[0] < 2 || !parse_options(arguments + 2, &options))
		return usage();
	if (!options.socket)
		options.socket = beside(arguments[0], path, sizeof(path));
	if (text_equal(arguments[1], "health"))
		return ask(&options, CALL_HEALTH);
	if (text_equal(arguments[1], "oci"))
		return read_state(state, &options) ? EXIT_FAILED : ask(&options, CALL_CHECKPOINT);
	if (text_equal(arguments[1], "checkpoint"))
		return ask(&options, CALL_CHECKPOINT);
	return usage();
}
