/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * condition.h - a condition on a word of its setter's memory
 */
#ifndef EVENTFD_POLL_CONDITION_H
#define EVENTFD_POLL_CONDITION_H

#include <linux/mm_types.h>
#include <linux/types.h>

#include "../uapi/eventfd_poll.h"

/**
 * struct condition - what EVENTFD_SET_POLL was given, and by whom
 * @info:	the condition; op is EVENTFD_POLL_OP_NONE where there is none
 * @mm:		the setter's address space. mmgrab()ed, and only compared: the
 *		memory in it is not pinned.
 */
struct condition {
	struct eventfd_poll_info info;
	struct mm_struct *mm;
};

int condition_get(struct condition *c, const struct eventfd_poll_info __user *uinfo);
void condition_put(struct condition *c);
bool condition_is_mine(const struct condition *c);
int condition_look(const struct condition *c, u64 *missing);
bool condition_memory_gone(u64 addr);

#endif
