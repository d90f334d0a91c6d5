/* SPDX-License-Identifier: Apache-2.0 */
/* fuzz_poison.h - bytes that stand for somebody else's, and must not get out; an input that has them itself is not run */
#ifndef KPOLL_FUZZ_POISON_H
#define KPOLL_FUZZ_POISON_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

static const uint8_t POISON[8] = { 0xd1, 0x9b, 0x6e, 0xa7, 0x13, 0xfc, 0x58, 0xe2 };

static inline void poison(void *at, size_t len)
{
	for (size_t i = 0; i < len; i += sizeof(POISON))
		memcpy((uint8_t *)at + i, POISON, len - i < sizeof(POISON) ? len - i : sizeof(POISON));
}

static inline bool is_poisoned(const void *at, size_t len)
{
	return memmem(at, len, POISON, sizeof(POISON)) != NULL;
}

#endif
