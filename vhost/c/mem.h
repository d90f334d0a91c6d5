/* SPDX-License-Identifier: Apache-2.0 */
/*
 * mem.h - guest memory: mappings of the front-end's file descriptors, and the table that translates into them
 *
 * Three address spaces meet here, and every variable's suffix says which it holds: `_gpa` guest physical, `_uva`
 * the front-end's virtual, a plain pointer ours. A mapping (mem_map) lives as long as a table names it; a table
 * (mem_table) never changes once sealed. Python makes a new table, has every worker leave the old one, then frees it.
 */
#ifndef KPOLL_MEM_H
#define KPOLL_MEM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define MEM_REGIONS_MAX 509 /* what KVM and QEMU allow; our GET_MAX_MEM_SLOTS answer */

struct mem_map; /* one mmap of a front-end's fd */

/**
 * mem_map_create() - Map a piece of a front-end's file, shared, read-write
 * @fd:		memfd, hugetlbfs file …; not kept, the caller closes it
 * @offset:	Where the piece starts in the file; needs no alignment
 * @size:	Its bytes; needs no alignment
 *
 * Return: 0; -EINVAL for an empty, wrapping or too long piece (beyond the file's end); -errno of fstat/mmap; -ENOSPC
 * when 16 full tables are mapped
 */
int mem_map_create(int fd, uint64_t offset, uint64_t size, struct mem_map **out);
void mem_map_destroy(struct mem_map *map);

/* mem_map_ptr() - Our address of the piece's first byte */
void *mem_map_ptr(const struct mem_map *map);

/* mem_map_broken() - Did the file shrink under us (a SIGBUS was turned into zeros)? */
bool mem_map_broken(const struct mem_map *map);

/**
 * mem_sigbus_install() - Turn a SIGBUS inside any mem_map into zeros from there on, and mark that map broken
 *
 * Process-wide, once. A SIGBUS elsewhere goes to the handler that was there before.
 * Return: 0 or -errno of sigaction(2)
 */
int mem_sigbus_install(void);

struct mem_region {
	uint64_t gpa, uva, size;
	uint8_t *ptr;
	const struct mem_map *map;
};

struct mem_table {
	uint32_t count;
	struct mem_region regions[]; /* sorted by gpa once sealed */
};

/* mem_table_create() - Room for @count regions; NULL when out of memory or @count > MEM_REGIONS_MAX */
struct mem_table *mem_table_create(uint32_t count);
void mem_table_set(struct mem_table *t, uint32_t i, uint64_t gpa, uint64_t uva, uint64_t size,
		   const struct mem_map *map);
/* mem_table_seal() - Sort; Return: 0, or -EINVAL if regions overlap in guest physical space or wrap */
int mem_table_seal(struct mem_table *t);
void mem_table_destroy(struct mem_table *t);

/* mem_table_broken() - Has any of its maps been truncated by the other side? */
bool mem_table_broken(const struct mem_table *t);

/*
 * mem_broken_count() - How many SIGBUS were turned into zeros so far, in all maps. Cheap: the data plane compares it
 * with what it saw last, and looks at its tables only when it moved.
 */
uint32_t mem_broken_count(void);

/* mem_broken_fd() - An eventfd that is signalled whenever that happens, never read; -1 before mem_sigbus_install() */
int mem_broken_fd(void);

/* mem_find_gpa() - The region that contains @gpa, or NULL */
const struct mem_region *mem_find_gpa(const struct mem_table *t, uint64_t gpa);

/**
 * mem_gpa() - Translate a guest physical range that must lie in one region
 * Return: our address, or NULL when any byte of it is outside
 */
static inline void *mem_gpa(const struct mem_table *t, uint64_t gpa, uint64_t len)
{
	/* Nearly every guest has a handful of regions: look at the first few before searching. */
	for (uint32_t i = 0; i < t->count && i < 4; i++) {
		const struct mem_region *r = &t->regions[i];
		uint64_t at = gpa - r->gpa; /* huge when gpa < r->gpa */

		if (at < r->size)
			return len <= r->size - at ? r->ptr + at : NULL;
	}
	if (t->count > 4) {
		const struct mem_region *r = mem_find_gpa(t, gpa);

		if (r && len <= r->size - (gpa - r->gpa))
			return r->ptr + (gpa - r->gpa);
	}
	return NULL;
}

/**
 * mem_gpa_run() - Translate as much of a range as is contiguous for us
 * @len:	In: bytes wanted (> 0). Out: bytes that @return points at, 1..wanted
 * Return: our address, or NULL when @gpa itself is outside
 */
void *mem_gpa_run(const struct mem_table *t, uint64_t gpa, uint64_t *len);

/* mem_uva() - As mem_gpa() for a front-end virtual range (ring addresses of SET_VRING_ADDR) */
void *mem_uva(const struct mem_table *t, uint64_t uva, uint64_t len);

/*
 * mem_uva_overlap() - Do two front-end virtual ranges, of which mem_uva() finds each, share a byte?
 *
 * By file and offset, not by address: a front-end may map a piece of its file twice.
 */
bool mem_uva_overlap(const struct mem_table *t, uint64_t a_uva, uint64_t a_len, uint64_t b_uva, uint64_t b_len);

/* mem_read_gpa() - Copy out of guest memory, across regions. Return: 0 or -EFAULT */
int mem_read_gpa(const struct mem_table *t, void *dst, uint64_t gpa, uint64_t len);

#endif
