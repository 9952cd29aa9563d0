/* SPDX-License-Identifier: Apache-2.0 */
/* Unix sockets that keep message boundaries, for programs without a libc. */
#ifndef TORPOR_UNIXSOCKET_H
#define TORPOR_UNIXSOCKET_H

#include <asm/socket.h>
#include <linux/un.h>

#include "torpor/sys.h"
#include "torpor/text.h"

/* Not in the kernel's exported headers; include/linux/socket.h and net.h (v6.8). */
#define SOCKET_UNIX 1
#define SOCKET_SEQPACKET 5
#define SOCKET_CLOEXEC O_CLOEXEC
#define SOCKET_NOSIGNAL 0x4000
#define SOCKET_TRUNCATED 0x20
#define SOCKET_DONTWAIT 0x40

/* struct ucred */
struct socket_peer {
	int32_t pid;
	uint32_t uid;
	uint32_t gid;
};

_Static_assert(sizeof(struct socket_peer) == 12, "struct ucred");

/* A socket with the address filled in, or -errno. */
static inline long unixsocket_open(struct sockaddr_un *address, const char *path)
{
	size_t length = text_length(path);

	if (length == 0 || length >= sizeof(address->sun_path))
		return -ENAMETOOLONG;
	address->sun_family = SOCKET_UNIX;
	for (size_t i = 0; i <= length; i++)
		address->sun_path[i] = path[i];
	return SYS3(__NR_socket, SOCKET_UNIX, SOCKET_SEQPACKET | SOCKET_CLOEXEC, 0);
}

/* The whole length of the message, also when it is longer than the buffer; or -errno. */
static inline long unixsocket_receive(int fd, void *buffer, size_t bytes)
{
	return SYS6(__NR_recvfrom, fd, buffer, bytes, SOCKET_TRUNCATED | SOCKET_DONTWAIT, NULL, NULL);
}

static inline long unixsocket_send(int fd, const void *bytes, size_t count)
{
	return SYS6(__NR_sendto, fd, bytes, count, SOCKET_NOSIGNAL | SOCKET_DONTWAIT, NULL, 0);
}

static inline long unixsocket_peer(int fd, struct socket_peer *peer)
{
	unsigned int length = sizeof(*peer);

	return SYS5(__NR_getsockopt, fd, SOL_SOCKET, SO_PEERCRED, peer, &length);
}

#endif
