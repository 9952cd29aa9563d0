/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Protobuf's wire format, as far as plugin/proto/hook.proto needs it: varints and
 * length-delimited fields in buffers of a fixed size.
 */
#ifndef TORPOR_WIRE_H
#define TORPOR_WIRE_H

#include <stddef.h>
#include <stdint.h>

#define WIRE_VARINT 0
#define WIRE_FIXED64 1
#define WIRE_BYTES 2
#define WIRE_FIXED32 5

/* A message being written; `full` stays set once something did not fit. */
struct wire_out {
	uint8_t *bytes;
	size_t room;
	size_t used;
	int full;
};

/* A message being read. */
struct wire_in {
	const uint8_t *at;
	const uint8_t *end;
};

/* One field: `number` for a varint, `bytes` for everything length-delimited. */
struct wire_field {
	uint64_t tag;
	uint64_t number;
	struct wire_in bytes;
};

static inline void wire_put_byte(struct wire_out *out, uint8_t byte)
{
	if (out->used == out->room)
		out->full = 1;
	else
		out->bytes[out->used++] = byte;
}

static inline void wire_put_varint(struct wire_out *out, uint64_t number)
{
	for (; number >= 0x80; number >>= 7)
		wire_put_byte(out, (uint8_t)(number | 0x80));
	wire_put_byte(out, (uint8_t)number);
}

/* proto3: a field with its default value is left out. */
static inline void wire_put_number(struct wire_out *out, unsigned int tag, uint64_t number)
{
	if (!number)
		return;
	wire_put_varint(out, (uint64_t)tag << 3 | WIRE_VARINT);
	wire_put_varint(out, number);
}

static inline void wire_put_bytes(struct wire_out *out, unsigned int tag, const void *bytes,
				  size_t count)
{
	wire_put_varint(out, (uint64_t)tag << 3 | WIRE_BYTES);
	wire_put_varint(out, count);
	for (size_t i = 0; i < count; i++)
		wire_put_byte(out, ((const uint8_t *)bytes)[i]);
}

/* 1 when there was a varint, 0 when the message is broken. */
static inline int wire_get_varint(struct wire_in *in, uint64_t *number)
{
	*number = 0;
	for (unsigned int shift = 0; shift < 64 && in->at < in->end; shift += 7) {
		uint8_t byte = *in->at++;

		*number |= (uint64_t)(byte & 0x7f) << shift;
		if (!(byte & 0x80))
			return 1;
	}
	return 0;
}

static inline int wire_skip(struct wire_in *in, uint64_t count, struct wire_in *skipped)
{
	if (count > (uint64_t)(in->end - in->at))
		return 0;
	skipped->at = in->at;
	skipped->end = in->at + count;
	in->at += count;
	return 1;
}

/* 1 with the next field, 0 at the end, -1 when the message is broken. */
static inline int wire_next(struct wire_in *in, struct wire_field *field)
{
	uint64_t key, length;

	field->number = 0;
	field->bytes.at = field->bytes.end = in->at;
	if (in->at == in->end)
		return 0;
	if (!wire_get_varint(in, &key))
		return -1;
	field->tag = key >> 3;
	switch (key & 7) {
	case WIRE_VARINT:
		return wire_get_varint(in, &field->number) ? 1 : -1;
	case WIRE_BYTES:
		if (!wire_get_varint(in, &length))
			return -1;
		return wire_skip(in, length, &field->bytes) ? 1 : -1;
	case WIRE_FIXED64:
		return wire_skip(in, 8, &field->bytes) ? 1 : -1;
	case WIRE_FIXED32:
		return wire_skip(in, 4, &field->bytes) ? 1 : -1;
	default:
		return -1;
	}
}

#endif
