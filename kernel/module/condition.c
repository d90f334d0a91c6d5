// SPDX-License-Identifier: GPL-2.0-only
/*
 * condition.c - read, check and evaluate a condition on a word of memory
 *
 * The words are read in the context of a task of the address space that set the
 * condition, with get_user(): nobody learns what he could not read himself.
 *
 * Only EVENTFD_SET_POLL, which holds no lock, takes page faults. Everybody who
 * polls looks with page faults disabled: epoll calls ->poll() under ep->mtx and,
 * while it adds to a nested epoll, under the system's one epmutex; and a fault on
 * memory that a FUSE file or a userfaultfd backs lasts for as long as its owner
 * likes. What a look makes of a page that is not there: watch.c.
 */

#include <linux/err.h>
#include <linux/fs.h>
#include <linux/mm.h>
#include <linux/pagemap.h>
#include <linux/sched.h>
#include <linux/sched/mm.h>
#include <linux/uaccess.h>

#include "condition.h"

/* The rules of EVENTFD_SET_POLL, but for F_ARM: no module can write a word between the last look and the sleep. */
static bool info_valid(const struct eventfd_poll_info *info)
{
	u32 size = info->size;

	/* A 32-bit kernel can't read 8 bytes at once. */
	if (size != 1 && size != 2 && size != 4 && !(size == 8 && IS_ENABLED(CONFIG_64BIT)))
		return false;
	if (info->op < EVENTFD_POLL_OP_EQUAL || info->op > EVENTFD_POLL_OP_NOT_EQUAL_PTR)
		return false;
	if (info->flags & ~EVENTFD_POLL_F_INDIRECT)
		return false;
	if (size < 8 && info->mask >> (size * BITS_PER_BYTE))
		return false;
	if (!IS_ALIGNED(info->addr, info->flags & EVENTFD_POLL_F_INDIRECT ? sizeof(u64) : size))
		return false;
	return info->op != EVENTFD_POLL_OP_NOT_EQUAL_PTR || IS_ALIGNED(info->val, size);
}

/* One load of exactly @size bytes: a word that somebody is storing is read old or new, never half. */
static int read_word(u64 addr, u32 size, u64 *word, u64 *missing)
{
	void __user *p = u64_to_user_ptr(addr);
	int error = -EFAULT;

	*missing = addr;
	/* What F_INDIRECT names was not seen by info_valid(). */
	if (addr != (unsigned long)addr || !IS_ALIGNED(addr, size))
		return -EINVAL;
	switch (size) {
	case 1:
		error = get_user(*word, (u8 __user *)p);
		break;
	case 2:
		error = get_user(*word, (u16 __user *)p);
		break;
	case 4:
		error = get_user(*word, (u32 __user *)p);
		break;
#ifdef CONFIG_64BIT
	case 8:
		error = get_user(*word, (u64 __user *)p);
		break;
#endif
	}
	return error;
}

/* Returns 1 or 0; -EFAULT, with the address, when memory can't be read; -EINVAL when an address can't be right. */
static int info_holds(const struct eventfd_poll_info *info, u64 *missing)
{
	u64 addr = info->addr, val = info->val, word = 0;
	/* All bits of the word: whose val is -1 may mean the word's -1. */
	u64 mask = info->mask ?: U64_MAX >> (64 - info->size * BITS_PER_BYTE);
	int error;

	if (info->flags & EVENTFD_POLL_F_INDIRECT) {
		const struct eventfd_poll_pair __user *pair = u64_to_user_ptr(addr);

		*missing = addr;
		if (get_user(addr, &pair->addr) || get_user(val, &pair->val))
			return -EFAULT;
	}
	error = read_word(addr, info->size, &word, missing);
	if (error)
		return error;

	switch (info->op) {
	case EVENTFD_POLL_OP_NOT_EQUAL_PTR:
		error = read_word(val, info->size, &val, missing);
		if (error)
			return error;
		fallthrough;
	case EVENTFD_POLL_OP_NOT_EQUAL:
		return (word & mask) != (val & mask);
	case EVENTFD_POLL_OP_EQUAL:
		return (word & mask) == (val & mask);
	case EVENTFD_POLL_OP_AND:
		return (word & val & mask) != 0;
	case EVENTFD_POLL_OP_NAND:
		return (word & val & mask) == 0;
	}
	return 0;
}

/**
 * condition_get() - make a condition of EVENTFD_SET_POLL's argument
 * @c:		receives it; to be given back with condition_put()
 * @uinfo:	the caller's
 *
 * May sleep on page faults; call without locks.
 *
 * Return: 0; -EFAULT when the argument, or the memory it names, can't be read;
 * -EINVAL when it is malformed or asks for what a module can't do
 */
int condition_get(struct condition *c, const struct eventfd_poll_info __user *uinfo)
{
	u64 missing;

	BUILD_BUG_ON(sizeof(c->info) != 56);

	if (copy_from_user(&c->info, uinfo, sizeof(c->info)))
		return -EFAULT;
	c->mm = NULL;
	if (c->info.op == EVENTFD_POLL_OP_NONE)
		return 0;
	if (!info_valid(&c->info))
		return -EINVAL;
	if (info_holds(&c->info, &missing) < 0)
		return -EFAULT;
	c->mm = current->mm;
	mmgrab(c->mm);
	return 0;
}

/**
 * condition_put() - dispose of a condition
 * @c:		the condition; may be none
 */
void condition_put(struct condition *c)
{
	if (c->mm)
		mmdrop(c->mm);
}

/**
 * condition_is_mine() - is there a condition, set by the current address space?
 * @c:		the condition
 */
bool condition_is_mine(const struct condition *c)
{
	return c->mm && c->mm == current->mm;
}

/**
 * condition_look() - does the condition hold? Takes no page faults
 * @c:		a condition that condition_is_mine()
 * @missing:	with -EFAULT, receives an address that can't be read now
 *
 * Return: 1 or 0; -EFAULT when a page would first have to be brought in, or is
 * gone; -EINVAL when F_INDIRECT names no address that a word can have
 */
int condition_look(const struct condition *c, u64 *missing)
{
	int holds;

	pagefault_disable();
	holds = info_holds(&c->info, missing);
	pagefault_enable();
	return holds;
}

/**
 * condition_memory_gone() - is nothing readable mapped at an address?
 * @addr:	of the current address space
 *
 * Tells memory that is gone from memory that is only not there at the moment.
 * Takes no page faults and waits for nobody; in doubt says no.
 */
bool condition_memory_gone(u64 addr)
{
	struct mm_struct *mm = current->mm;
	struct vm_area_struct *vma;
	bool gone;

	if (!access_ok(u64_to_user_ptr(addr), 1))
		return true;
	/* Who waits for mmap_lock may wait for somebody's page fault, see above. */
	if (!mmap_read_trylock(mm))
		return false;
	vma = find_vma(mm, addr);
	gone = !vma || vma->vm_start > addr || !(vma->vm_flags & VM_READ);
	/* A file that was truncated below its mapping: whoever reads there gets SIGBUS. */
	if (!gone && vma->vm_file && S_ISREG(file_inode(vma->vm_file)->i_mode)) {
		loff_t offset = ((loff_t)vma->vm_pgoff << PAGE_SHIFT) + (addr - vma->vm_start);

		gone = offset >= round_up(i_size_read(file_inode(vma->vm_file)), PAGE_SIZE);
	}
	mmap_read_unlock(mm);
	return gone;
}
