/* SPDX-License-Identifier: BSD-3-Clause */
/* test_seal.c: tags and encryption of what leaves this host's RAM. */
#include <errno.h>
#include <string.h>

#include "backends/harness.h"
#include "seal.h"

#define LEN 4096u

struct sealed {
	struct seal seal;
	struct seal_id id;
	uint8_t content[LEN], kept[LEN], tag[SEAL_TAG_BYTES];
};

static void make(struct sealed *x, bool encrypt)
{
	uint8_t key[32];

	memset(key, 7, sizeof(key));
	assert_int_equal(seal_init(&x->seal, key), 0);
	x->id = (struct seal_id){.count = 1234567, .owner = 5, .place = 89};
	fill(x->content, LEN, 1, 500);
	seal_close(&x->seal, encrypt, x->id, x->content, LEN, x->kept, x->tag);
}

static void comes_back(void **state)
{
	for (int encrypt = 0; encrypt <= 1; encrypt++) {
		struct sealed x;
		uint8_t out[LEN];

		make(&x, encrypt);
		assert_int_equal(seal_check(&x.seal, encrypt, x.id, x.kept, LEN, x.tag), 0);
		assert_int_equal(seal_open(&x.seal, encrypt, x.id, x.kept, LEN, x.tag, out), 0);
		assert_memory_equal(out, x.content, LEN);
		seal_wipe(&x.seal);
	}
}

static void encrypted_is_not_readable(void **state)
{
	struct sealed x, y;
	unsigned int same = 0;

	make(&x, true);
	for (uint32_t i = 0; i < LEN; i++)
		same += x.kept[i] == x.content[i];
	assert_in_range(same, 0, 100); /* 16 by chance */
	/* And each time differently. */
	make(&y, true);
	y.id.count++;
	seal_close(&y.seal, true, y.id, y.content, LEN, y.kept, y.tag);
	assert_memory_not_equal(x.kept, y.kept, LEN);
	make(&x, false);
	assert_memory_equal(x.kept, x.content, LEN);
}

static void refused(const struct sealed *x, bool encrypt)
{
	uint8_t out[LEN];

	memset(out, 0xa5, LEN);
	assert_int_equal(seal_check(&x->seal, encrypt, x->id, x->kept, LEN, x->tag), -EBADMSG);
	assert_int_equal(seal_open(&x->seal, encrypt, x->id, x->kept, LEN, x->tag, out), -EBADMSG);
	assert_memory_not_equal(out, x->content, LEN);
}

static void anything_else_is_refused(void **state)
{
	for (int encrypt = 0; encrypt <= 1; encrypt++) {
		struct sealed x;

		for (uint32_t bit = 0; bit < LEN * 8; bit += 997) {
			make(&x, encrypt);
			x.kept[bit / 8] ^= (uint8_t)(1 << bit % 8);
			refused(&x, encrypt);
		}
		for (uint32_t bit = 0; bit < SEAL_TAG_BYTES * 8; bit++) {
			make(&x, encrypt);
			x.tag[bit / 8] ^= (uint8_t)(1 << bit % 8);
			refused(&x, encrypt);
		}
		make(&x, encrypt);
		memset(x.kept, 0, LEN); /* a store that was never written */
		refused(&x, encrypt);
		make(&x, encrypt);
		x.id.count--; /* an older one of the same place */
		refused(&x, encrypt);
		make(&x, encrypt);
		x.id.place++; /* another's */
		refused(&x, encrypt);
		make(&x, encrypt);
		x.id.owner++;
		refused(&x, encrypt);
		make(&x, encrypt);
		x.seal.encrypt_key[3] ^= 1; /* another VM's */
		x.seal.tag_key[3] ^= 1;
		refused(&x, encrypt);
		make(&x, encrypt);
		refused(&x, !encrypt);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(comes_back),
		cmocka_unit_test(encrypted_is_not_readable),
		cmocka_unit_test(anything_else_is_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
