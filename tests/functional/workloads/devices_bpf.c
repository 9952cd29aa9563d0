/* SPDX-License-Identifier: Apache-2.0 */
/* BPF maps: hash, array, frozen, with a second description; others are refused. */
#include "core_base.h"
#include <linux/bpf.h>
#include <sys/syscall.h>

static int bpf(int command, union bpf_attr *attr)
{
	return syscall(SYS_bpf, command, attr, sizeof(*attr));
}

static int create(int type, int key, int value, int entries, int flags, const char *name)
{
	union bpf_attr a = { .map_type = type, .key_size = key, .value_size = value,
			     .max_entries = entries, .map_flags = flags };

	snprintf(a.map_name, sizeof(a.map_name), "%s", name);
	return bpf(BPF_MAP_CREATE, &a);
}

static void set(int fd, uint32_t key, uint64_t value, int wanted)
{
	union bpf_attr a = { .map_fd = fd, .key = (uintptr_t)&key, .value = (uintptr_t)&value };

	SAME(bpf(BPF_MAP_UPDATE_ELEM, &a), wanted);
}

static uint64_t get(int fd, uint32_t key)
{
	uint64_t value = 0;
	union bpf_attr a = { .map_fd = fd, .key = (uintptr_t)&key, .value = (uintptr_t)&value };

	if (bpf(BPF_MAP_LOOKUP_ELEM, &a))
		return ~0ull;
	return value;
}

static void info(int fd, struct bpf_map_info *is)
{
	union bpf_attr a = { .info = { fd, sizeof(*is), (uintptr_t)is } };

	memset(is, 0, sizeof(*is));
	CHECK(!bpf(BPF_OBJ_GET_INFO_BY_FD, &a));
}

static void done(void)
{
	ready();
	await_go();
	good();
	_exit(0);
}

int main(int argc, char **argv)
{
	struct bpf_map_info before, now;
	union bpf_attr a;

	begin(argv);
	int hash = create(BPF_MAP_TYPE_HASH, 4, 8, 1000, BPF_F_NO_PREALLOC, "counts");

	if (hash < 0) {
		put("ready", "lacking: BPF maps");
		await_go();
		return 0;
	}
	if (argc > 2 && !strcmp(argv[2], "ring")) {
		CHECK(create(BPF_MAP_TYPE_RINGBUF, 0, 0, 4096, 0, "ring") >= 0);
		done();
	}
	if (argc > 2 && !strcmp(argv[2], "program")) {
		struct bpf_insn code[] = { { .code = 0xb7, .dst_reg = 0, .imm = 0 }, { .code = 0x95 } };

		memset(&a, 0, sizeof(a));
		a.prog_type = BPF_PROG_TYPE_SOCKET_FILTER;
		a.insns = (uintptr_t)code;
		a.insn_cnt = 2;
		a.license = (uintptr_t) "GPL";
		CHECK(bpf(BPF_PROG_LOAD, &a) >= 0);
		close(hash);
		done();
	}
	for (int i = 0; i < 700; i++)
		set(hash, i * 7, i, 0);
	int array = create(BPF_MAP_TYPE_ARRAY, 4, 8, 50, 0, ""), empty;

	CHECK(array >= 0);
	set(array, 49, 1ull << 40, 0);
	memset(&a, 0, sizeof(a));
	a.map_fd = array;
	CHECK(!bpf(BPF_MAP_FREEZE, &a));
	empty = create(BPF_MAP_TYPE_HASH, 4, 8, 3, 0, "empty");
	info(hash, &before);
	int other = -1;

	if (argc > 2 && !strcmp(argv[2], "twice")) {
		memset(&a, 0, sizeof(a));
		a.map_id = before.id;
		a.open_flags = BPF_F_RDONLY;
		CHECK((other = bpf(BPF_MAP_GET_FD_BY_ID, &a)) >= 0);
	}
	ready();
	await_go();
	info(hash, &now);
	SAME(now.map_flags, before.map_flags);
	SAME(now.max_entries, before.max_entries);
	CHECK(!strcmp(now.name, "counts"));
	for (int i = 0; i < 700; i++)
		SAME(get(hash, i * 7), i);
	SAME(get(hash, 1), ~0ull);
	SAME(get(array, 49), 1ull << 40);
	SAME(get(array, 48), 0);
	set(array, 0, 1, -1);
	set(hash, 1, 5, 0);
	SAME(get(empty, 0), ~0ull);
	if (other >= 0) {
		SAME(get(other, 1), 5);
		set(other, 2, 5, -1);
	}
	good();
	return 0;
}
