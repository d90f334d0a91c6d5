/* SPDX-License-Identifier: Apache-2.0 */
/* test_mem.c - guest memory: what is mapped, what is refused, and what a truncated file does */
#include <errno.h>
#include <signal.h>
#include <sys/wait.h>

#include "guest.h"

static int memfd(off_t size)
{
	int fd = memfd_create("m", MFD_CLOEXEC);

	CHECK(fd >= 0 && ftruncate(fd, size) == 0);
	return fd;
}

static void a_piece_may_start_and_end_anywhere_in_a_page(void)
{
	struct mem_map *map;
	int fd = memfd(3 * 4096);
	uint8_t byte = 7;

	CHECK(pwrite(fd, &byte, 1, 4096 + 100) == 1);
	CHECK_EQ(mem_map_create(fd, 4096 + 100, 5000, &map), 0);
	CHECK_EQ(*(uint8_t *)mem_map_ptr(map), 7);
	((uint8_t *)mem_map_ptr(map))[4999] = 9;
	CHECK(pread(fd, &byte, 1, 4096 + 100 + 4999) == 1);
	CHECK_EQ(byte, 9);
	mem_map_destroy(map);
	close(fd);
}

static void a_piece_beyond_the_file_is_refused(void)
{
	struct mem_map *map;
	int fd = memfd(4096), pipes[2];

	CHECK_EQ(mem_map_create(fd, 0, 4097, &map), -EINVAL);
	CHECK_EQ(mem_map_create(fd, 4096, 1, &map), -EINVAL);
	CHECK_EQ(mem_map_create(fd, 0, 0, &map), -EINVAL);
	CHECK_EQ(mem_map_create(fd, UINT64_MAX, 2, &map), -EINVAL);
	CHECK_EQ(mem_map_create(fd, UINT64_MAX - 4095, 4096, &map), -EINVAL);
	CHECK_EQ(mem_map_create(-1, 0, 4096, &map), -EBADF);
	CHECK(pipe(pipes) == 0);
	CHECK_EQ(mem_map_create(pipes[0], 0, 4096, &map), -EINVAL);
	close(pipes[0]);
	close(pipes[1]);
	close(fd);
}

static void translation_ends_where_the_region_ends(void)
{
	struct guest g;
	uint64_t run;

	guest_make(&g);
	CHECK(mem_gpa(g.table, 1 * MIB, MIB) == mem_map_ptr(g.maps[0]));
	CHECK(mem_gpa(g.table, 1 * MIB, MIB + 1) == NULL); /* contiguous for the guest, two mappings for us */
	CHECK(mem_gpa(g.table, 1 * MIB - 1, 1) == NULL);
	CHECK(mem_gpa(g.table, 3 * MIB, 1) == NULL);
	CHECK(mem_gpa(g.table, 1 * MIB + 1, UINT64_MAX) == NULL);
	CHECK(mem_gpa(g.table, UINT64_MAX, 2) == NULL);
	CHECK(mem_uva(g.table, GUEST_UVA + 16 * MIB, MIB) == mem_map_ptr(g.maps[2]));
	CHECK(mem_uva(g.table, 16 * MIB, 1) == NULL);
	run = 100;
	CHECK(mem_gpa_run(g.table, BORDER_GPA - 40, &run) != NULL);
	CHECK_EQ(run, 40);
	guest_free(&g);
}

static void copying_crosses_regions_but_not_holes(void)
{
	struct guest g;
	uint8_t copy[8];

	guest_make(&g);
	memset(guest_at(&g, BORDER_GPA - 4), 1, 4);
	memset(guest_at(&g, BORDER_GPA), 2, 4);
	CHECK_EQ(mem_read_gpa(g.table, copy, BORDER_GPA - 4, 8), 0);
	CHECK(memcmp(copy, "\1\1\1\1\2\2\2\2", 8) == 0);
	CHECK_EQ(mem_read_gpa(g.table, copy, BEYOND_GPA - 4, 8), -EFAULT);
	guest_free(&g);
}

static void many_regions_are_searched(void)
{
	struct mem_table *t = mem_table_create(MEM_REGIONS_MAX);
	struct mem_map *map;
	int fd = memfd(4096);

	CHECK_EQ(mem_map_create(fd, 0, 4096, &map), 0);
	for (uint32_t i = 0; i < MEM_REGIONS_MAX; i++) /* given in the wrong order, with holes */
		mem_table_set(t, i, (MEM_REGIONS_MAX - i) * 8192ull, i * 4096ull, 4096, map);
	CHECK_EQ(mem_table_seal(t), 0);
	for (uint64_t i = 1; i <= MEM_REGIONS_MAX; i++) {
		CHECK(mem_gpa(t, i * 8192, 4096) == mem_map_ptr(map));
		CHECK(mem_gpa(t, i * 8192 + 4096, 1) == NULL);
		CHECK(mem_gpa(t, i * 8192 - 1, 1) == NULL);
	}
	CHECK(mem_table_create(MEM_REGIONS_MAX + 1) == NULL);
	mem_table_destroy(t);
	mem_map_destroy(map);
	close(fd);
}

static void overlapping_and_wrapping_regions_are_refused(void)
{
	struct mem_table *t = mem_table_create(2);
	struct mem_map *map;
	int fd = memfd(8192);

	CHECK_EQ(mem_map_create(fd, 0, 8192, &map), 0);
	mem_table_set(t, 0, 0, 0, 8192, map);
	mem_table_set(t, 1, 4096, 1 << 20, 8192, map);
	CHECK_EQ(mem_table_seal(t), -EINVAL);
	mem_table_set(t, 0, 0, 0, 4096, map);
	mem_table_set(t, 1, UINT64_MAX - 4095, 1 << 20, 8192, map);
	CHECK_EQ(mem_table_seal(t), -EINVAL);
	mem_table_destroy(t);
	mem_map_destroy(map);
	close(fd);
}

static void a_truncated_file_reads_zeros_and_is_marked_broken(void)
{
	struct guest g;
	uint32_t before = mem_broken_count();
	volatile uint8_t *at;

	CHECK_EQ(mem_sigbus_install(), 0);
	guest_make(&g);
	at = guest_at(&g, 2 * MIB + 12345);
	*at = 5;
	CHECK(ftruncate(g.fds[1], 0) == 0);
	CHECK_EQ(*at, 0);
	*at = 6; /* lands in our page of zeros, hurts nobody */
	CHECK(mem_map_broken(g.maps[1]));
	CHECK(!mem_map_broken(g.maps[0]));
	CHECK(mem_table_broken(g.table));
	CHECK_EQ(mem_broken_count(), before + 1);
	guest_free(&g);
}

static unsigned mappings(void)
{
	FILE *file = fopen("/proc/self/maps", "r");
	unsigned lines = 0;

	CHECK(file != NULL);
	for (int c; (c = fgetc(file)) != EOF;)
		lines += c == '\n';
	fclose(file);
	return lines;
}

/* A process may have some 65,000 mappings: one for each page that is touched would be a way to end the daemon. */
static void however_many_pages_are_gone_the_process_keeps_few_mappings(void)
{
	struct guest g;
	unsigned before;

	guest_make(&g);
	before = mappings();
	CHECK(ftruncate(g.fds[1], 0) == 0);
	for (int64_t at = MIB - 4096; at > 0; at -= 8192) /* backwards, so that each page faults by itself */
		*(volatile uint8_t *)guest_at(&g, 2 * MIB + (uint64_t)at) = 1;
	CHECK(mappings() <= before + 3);
	guest_free(&g);
}

static void a_broken_mapping_is_announced_on_the_eventfd(void)
{
	struct guest g;
	uint64_t count;

	guest_make(&g);
	CHECK(mem_broken_fd() >= 0);
	if (read(mem_broken_fd(), &count, 8) < 0)
		count = 0;
	CHECK(ftruncate(g.fds[0], 0) == 0);
	*(volatile uint8_t *)guest_at(&g, 1 * MIB) = 1;
	CHECK(read(mem_broken_fd(), &count, 8) == 8);
	CHECK_EQ(count, 1);
	guest_free(&g);
}

static void a_bus_error_elsewhere_still_ends_the_process(void)
{
	int fd = memfd(4096), status;
	volatile uint8_t *at = mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0);
	pid_t pid;

	CHECK(at != MAP_FAILED && ftruncate(fd, 0) == 0);
	pid = fork();
	if (pid == 0)
		_exit(*at);
	CHECK(waitpid(pid, &status, 0) == pid);
	/* By the signal itself, or by the sanitizer that was there first and reports it. */
	CHECK(WIFSIGNALED(status) ? WTERMSIG(status) == SIGBUS : WEXITSTATUS(status) != 0);
	munmap((void *)at, 4096);
	close(fd);
}

int main(void)
{
	RUN(a_piece_may_start_and_end_anywhere_in_a_page);
	RUN(a_piece_beyond_the_file_is_refused);
	RUN(translation_ends_where_the_region_ends);
	RUN(copying_crosses_regions_but_not_holes);
	RUN(many_regions_are_searched);
	RUN(overlapping_and_wrapping_regions_are_refused);
	RUN(a_truncated_file_reads_zeros_and_is_marked_broken);
	RUN(however_many_pages_are_gone_the_process_keeps_few_mappings);
	RUN(a_broken_mapping_is_announced_on_the_eventfd);
	RUN(a_bus_error_elsewhere_still_ends_the_process);
	return 0;
}
