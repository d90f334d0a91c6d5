/* SPDX-License-Identifier: Apache-2.0 */
/*
 * wait_word.c - conditions on words of memory, as EVENTFD_SET_POLL defines them: well-formed? true? arm the doorbell
 *
 * The kernel evaluates the same conditions (kernel/uapi/eventfd_poll.h). These are for whoever looks without asking it.
 */
#include <errno.h>

#include "atomics.h"
#include "wait.h"

static uint64_t load_word(uint64_t addr, uint32_t size)
{
	/* Pairs with the writer's release: what it published before the word is visible after we saw the word. */
	switch (size) {
	case 1:
		return load_acquire((const uint8_t *)(uintptr_t)addr);
	case 2:
		return load_acquire((const uint16_t *)(uintptr_t)addr);
	case 4:
		return load_acquire((const uint32_t *)(uintptr_t)addr);
	default:
		return load_acquire((const uint64_t *)(uintptr_t)addr);
	}
}

/* All the bits of a word of @size bytes, 1..8. */
static uint64_t size_mask(uint32_t size)
{
	return UINT64_MAX >> (64 - size * 8);
}

int wait_word_check(const struct eventfd_poll_info *w)
{
	if (w->size != 1 && w->size != 2 && w->size != 4 && w->size != 8)
		return -EINVAL;
	if (w->op < EVENTFD_POLL_OP_EQUAL || w->op > EVENTFD_POLL_OP_NOT_EQUAL_PTR)
		return -EINVAL;
	if (w->flags & ~(EVENTFD_POLL_F_ARM | EVENTFD_POLL_F_ARM_PTR | EVENTFD_POLL_F_INDIRECT))
		return -EINVAL;
	if (w->addr % (w->flags & EVENTFD_POLL_F_INDIRECT ? 8 : w->size) || w->mask & ~size_mask(w->size))
		return -EINVAL;
	if (w->op == EVENTFD_POLL_OP_NOT_EQUAL_PTR && w->val % w->size)
		return -EINVAL;
	if (w->flags & EVENTFD_POLL_F_ARM_PTR && !(w->flags & EVENTFD_POLL_F_ARM))
		return -EINVAL;
	if (w->flags & EVENTFD_POLL_F_ARM && w->arm_addr % w->size)
		return -EINVAL;
	return 0;
}

bool wait_word_true(const struct eventfd_poll_info *w)
{
	/* A mask of 0 is all of the word's bits, not of the comparand's: -1 in val is a word of ones, whatever its size. */
	uint64_t addr = w->addr, val = w->val, word, mask = w->mask ? w->mask : size_mask(w->size);

	if (w->flags & EVENTFD_POLL_F_INDIRECT) {
		const struct eventfd_poll_pair *pair = (const struct eventfd_poll_pair *)(uintptr_t)addr;

		addr = READ_ONCE(pair->addr);
		val = READ_ONCE(pair->val);
	}
	word = load_word(addr, w->size);
	switch (w->op) {
	case EVENTFD_POLL_OP_EQUAL:
		return (word & mask) == (val & mask);
	case EVENTFD_POLL_OP_NOT_EQUAL:
		return (word & mask) != (val & mask);
	case EVENTFD_POLL_OP_AND:
		return (word & val & mask) != 0;
	case EVENTFD_POLL_OP_NAND:
		return (word & val & mask) == 0;
	case EVENTFD_POLL_OP_NOT_EQUAL_PTR:
		return (word & mask) != (load_word(val, w->size) & mask);
	default:
		return false;
	}
}

void wait_word_arm(const struct eventfd_poll_info *w)
{
	uint64_t value;

	if (!(w->flags & EVENTFD_POLL_F_ARM))
		return;
	value = w->flags & EVENTFD_POLL_F_ARM_PTR ? load_word(w->arm_val, w->size) : w->arm_val;
	switch (w->size) {
	case 1:
		store_relaxed((uint8_t *)(uintptr_t)w->arm_addr, (uint8_t)value);
		break;
	case 2:
		store_relaxed((uint16_t *)(uintptr_t)w->arm_addr, (uint16_t)value);
		break;
	case 4:
		store_relaxed((uint32_t *)(uintptr_t)w->arm_addr, (uint32_t)value);
		break;
	default:
		store_relaxed((uint64_t *)(uintptr_t)w->arm_addr, value);
		break;
	}
}
