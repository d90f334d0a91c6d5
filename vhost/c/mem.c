/* SPDX-License-Identifier: Apache-2.0 */
/*
 * mem.c - guest memory: mmap of the front-end's files, translation, and surviving their truncation
 *
 * THEORY OF OPERATION
 *
 * A mapping covers whole pages of the file; the piece that the front-end named may start and end anywhere in them.
 *
 * The front-end can truncate its file whenever it likes, and a load or store beyond the new end raises SIGBUS in
 * whichever thread did it. The handler finds the mapping by address in a fixed table (it may not take locks or
 * allocate), maps zeros over everything from that page on, marks the mapping broken and returns: the access is repeated
 * and succeeds. One fault zeroes the whole rest, so however many pages are touched, a mapping never splits into more
 * than two: a process may have only so many. The data plane is woken through an eventfd, notices the mark between two
 * requests and stops the queues that use this memory.
 */
#include "mem.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "../../kernel/c/atomics.h"
#include "../../kernel/c/signal_fd.h"

struct mem_map {
	uint8_t *base;   /* page-aligned start of the mapping; atomic, NULL: not mapped (any more, or yet) */
	size_t bytes;    /* whole pages */
	size_t page;     /* of the file: huge on hugetlbfs */
	uint8_t *ptr;    /* where the named piece starts */
	uint64_t offset; /* and where in the file */
	dev_t dev;       /* the file */
	ino_t ino;       /* on its device */
	uint32_t taken;  /* atomic: somebody's */
	uint32_t broken; /* atomic; set by the SIGBUS handler */
};

/*
 * All mappings there can be: 16 devices with a full table each. They are never freed, only reused, because the handler
 * may look at one in one thread while another thread unmaps it.
 */
#define MAPS (16 * MEM_REGIONS_MAX)
static struct mem_map maps[MAPS];
static struct sigaction previous;
static uint32_t broken_count;
static int broken_fd = -1;

static struct mem_map *take_map(void)
{
	for (unsigned i = 0; i < MAPS; i++) {
		uint32_t no = 0;

		/* Pairs with mem_map_destroy()'s release: whoever had it before is done with it. */
		if (__atomic_compare_exchange_n(&maps[i].taken, &no, 1, false, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED))
			return &maps[i];
	}
	return NULL;
}

/* The page size that the mapping of @fd is made of, which is also the granularity of a repair. */
static size_t page_of(int fd)
{
	struct statfs fs;

	if (fstatfs(fd, &fs) == 0 && fs.f_type == HUGETLBFS_MAGIC)
		return (size_t)fs.f_bsize;
	return (size_t)sysconf(_SC_PAGESIZE);
}

int mem_map_create(int fd, uint64_t offset, uint64_t size, struct mem_map **out)
{
	uint64_t end, page, start, bytes;
	struct mem_map *map;
	struct stat st;
	uint8_t *base;

	if (size == 0 || __builtin_add_overflow(offset, size, &end) || end > INT64_MAX)
		return -EINVAL;
	if (fstat(fd, &st) < 0)
		return -errno;
	page = page_of(fd);
	/* A file may end inside its last page; beyond that page an access would raise SIGBUS at once. */
	if (!S_ISREG(st.st_mode) || end > (((uint64_t)st.st_size + page - 1) & ~(page - 1)))
		return -EINVAL;

	start = offset & ~(page - 1);
	bytes = (end - start + page - 1) & ~(page - 1);
	base = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, (off_t)start);
	if (base == MAP_FAILED)
		return -errno;
	/* A core dump of the daemon is no place for guests' memory, and a fork no reason to copy it. */
	madvise(base, bytes, MADV_DONTDUMP);
	madvise(base, bytes, MADV_DONTFORK);
	map = take_map();
	if (!map) {
		munmap(base, bytes);
		return -ENOSPC;
	}
	map->bytes = bytes;
	map->page = page;
	map->ptr = base + (offset - start);
	map->dev = st.st_dev;
	map->ino = st.st_ino;
	map->offset = offset;
	map->broken = 0;
	store_release(&map->base, base); /* pairs with find_map()'s acquire: it is complete before it can be found */
	*out = map;
	return 0;
}

void mem_map_destroy(struct mem_map *map)
{
	uint8_t *base;

	if (!map)
		return;
	base = map->base;
	store_release(&map->base, NULL);
	munmap(base, map->bytes);
	store_release(&map->taken, 0); /* pairs with take_map() */
}

void *mem_map_ptr(const struct mem_map *map)
{
	return map->ptr;
}

bool mem_map_broken(const struct mem_map *map)
{
	return load_acquire(&map->broken) != 0;
}

uint32_t mem_broken_count(void)
{
	return load_relaxed(&broken_count);
}

int mem_broken_fd(void)
{
	return broken_fd;
}

/* The mapping that contains @at. That one isn't being unmapped, since somebody is just using it; others may be. */
static struct mem_map *find_map(const uint8_t *at)
{
	for (unsigned i = 0; i < MAPS; i++) {
		uint8_t *base = load_acquire(&maps[i].base);

		if (base && at >= base && at < base + maps[i].bytes && load_acquire(&maps[i].base) == base)
			return &maps[i];
	}
	return NULL;
}

/*
 * Runs in the thread that touched the hole. Only loads, stores, mmap(2) and write(2): nothing here takes a lock.
 *
 *	worker				front-end
 *	checks the address: inside
 *					ftruncate()
 *	reads: SIGBUS -> zeros mapped
 *	reads again: zero
 *	next turn: mem_broken_count() moved -> the queue stops
 */
static void sigbus_handler(int sig, siginfo_t *info, void *context)
{
	/* A signal that somebody sent (si_code <= 0) is no memory fault, and its si_addr means nothing. */
	struct mem_map *map = info->si_code > 0 ? find_map(info->si_addr) : NULL;
	int saved = errno;

	if (map) {
		size_t from = (size_t)((uint8_t *)info->si_addr - map->base) & ~(map->page - 1);

		if (mmap(map->base + from, map->bytes - from, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0) != MAP_FAILED) {
			store_release(&map->broken, 1);
			__atomic_fetch_add(&broken_count, 1, __ATOMIC_RELEASE);
			/* Wakes whoever found the hole on the way to sleep. A full counter: everybody has been told. */
			signal_fd(broken_fd);
			errno = saved;
			return;
		}
	}
	/* Not ours: what was there before decides; with the default action the repeated access ends the process. */
	if (previous.sa_flags & SA_SIGINFO) {
		previous.sa_sigaction(sig, info, context);
	} else if (previous.sa_handler != SIG_DFL && previous.sa_handler != SIG_IGN) {
		previous.sa_handler(sig);
	} else {
		signal(SIGBUS, SIG_DFL);
		if (info->si_code <= 0)
			raise(SIGBUS);
	}
	errno = saved;
}

int mem_sigbus_install(void)
{
	static bool installed;
	struct sigaction action = { .sa_sigaction = sigbus_handler, .sa_flags = SA_SIGINFO | SA_ONSTACK };

	if (installed)
		return 0;
	broken_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	sigemptyset(&action.sa_mask);
	if (broken_fd < 0 || sigaction(SIGBUS, &action, &previous) < 0)
		return -errno;
	installed = true;
	return 0;
}

struct mem_table *mem_table_create(uint32_t count)
{
	struct mem_table *t;

	if (count > MEM_REGIONS_MAX)
		return NULL;
	t = calloc(1, sizeof(*t) + count * sizeof(t->regions[0]));
	if (t)
		t->count = count;
	return t;
}

void mem_table_set(struct mem_table *t, uint32_t i, uint64_t gpa, uint64_t uva, uint64_t size,
		   const struct mem_map *map)
{
	if (i < t->count)
		t->regions[i] = (struct mem_region){ gpa, uva, size, map->ptr, map };
}

static int by_gpa(const void *a, const void *b)
{
	const struct mem_region *x = a, *y = b;

	return (x->gpa > y->gpa) - (x->gpa < y->gpa);
}

int mem_table_seal(struct mem_table *t)
{
	uint64_t end = 0, uva_end;

	qsort(t->regions, t->count, sizeof(t->regions[0]), by_gpa);
	for (uint32_t i = 0; i < t->count; i++) {
		const struct mem_region *r = &t->regions[i];

		if (r->size == 0 || (i > 0 && r->gpa < end))
			return -EINVAL;
		if (__builtin_add_overflow(r->gpa, r->size, &end) || __builtin_add_overflow(r->uva, r->size, &uva_end))
			return -EINVAL;
	}
	return 0;
}

void mem_table_destroy(struct mem_table *t)
{
	free(t);
}

bool mem_table_broken(const struct mem_table *t)
{
	for (uint32_t i = 0; i < t->count; i++)
		if (mem_map_broken(t->regions[i].map))
			return true;
	return false;
}

const struct mem_region *mem_find_gpa(const struct mem_table *t, uint64_t gpa)
{
	uint32_t low = 0, high = t->count;

	while (low < high) {
		uint32_t mid = low + (high - low) / 2;
		const struct mem_region *r = &t->regions[mid];

		if (gpa < r->gpa)
			high = mid;
		else if (gpa - r->gpa < r->size)
			return r;
		else
			low = mid + 1;
	}
	return NULL;
}

void *mem_gpa_run(const struct mem_table *t, uint64_t gpa, uint64_t *len)
{
	const struct mem_region *r = mem_find_gpa(t, gpa);
	uint64_t room;

	if (!r)
		return NULL;
	room = r->size - (gpa - r->gpa);
	if (*len > room)
		*len = room;
	return r->ptr + (gpa - r->gpa);
}

static const struct mem_region *find_uva(const struct mem_table *t, uint64_t uva, uint64_t len)
{
	for (uint32_t i = 0; i < t->count; i++) {
		const struct mem_region *r = &t->regions[i];
		uint64_t at = uva - r->uva; /* huge when uva < r->uva */

		if (at < r->size && len <= r->size - at)
			return r;
	}
	return NULL;
}

void *mem_uva(const struct mem_table *t, uint64_t uva, uint64_t len)
{
	const struct mem_region *r = find_uva(t, uva, len);

	return r ? r->ptr + (uva - r->uva) : NULL;
}

bool mem_uva_overlap(const struct mem_table *t, uint64_t a_uva, uint64_t a_len, uint64_t b_uva, uint64_t b_len)
{
	const struct mem_region *a = find_uva(t, a_uva, a_len), *b = find_uva(t, b_uva, b_len);
	uint64_t a_at, b_at;

	if (!a || !b || a->map->dev != b->map->dev || a->map->ino != b->map->ino)
		return false;
	a_at = a->map->offset + (a_uva - a->uva);
	b_at = b->map->offset + (b_uva - b->uva);
	return a_at < b_at + b_len && b_at < a_at + a_len;
}

int mem_read_gpa(const struct mem_table *t, void *dst, uint64_t gpa, uint64_t len)
{
	uint8_t *to = dst;

	while (len > 0) {
		uint64_t run = len;
		const void *from = mem_gpa_run(t, gpa, &run);

		if (!from)
			return -EFAULT;
		copy_once(to, from, run);
		to += run;
		gpa += run;
		len -= run;
	}
	return 0;
}
