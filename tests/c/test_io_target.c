// SPDX-License-Identifier: Apache-2.0
/*
 * test_io_target.c - what can be a disk, what can't, and what is learned of it
 */
#include <errno.h>

#include "test_io.h"

static struct io_target t;
static char path[PATH_MAX];

static void a_file_is_512_byte_blocks_whatever_it_lies_on(void)
{
	scratch_file(path, false);
	CHECK_EQ(io_target_open(&t, path, false), 0);
	CHECK(!t.block_device);
	CHECK(!t.read_only);
	CHECK_EQ(t.size, FILE_SIZE);
	CHECK_EQ(t.logical_block, 512);
	CHECK(t.physical_block >= 512);
	CHECK_EQ(t.discard_granularity, t.physical_block);
	CHECK(t.write_cache); /* its filesystem has one, whatever the disk below it has */
	io_target_close(&t);
	CHECK_EQ(t.fd, -1);
	CHECK_EQ(t.fd_buffered, -1);
	unlink(path);
}

static void alignments_are_powers_of_two_that_a_read_proves(void)
{
	uint8_t *buf = pages(64 * KIB);

	scratch_file(path, false);
	CHECK_EQ(io_target_open(&t, path, false), 0);
	CHECK_EQ(t.mem_align & (t.mem_align - 1), 0);
	CHECK_EQ(t.offset_align & (t.offset_align - 1), 0);
	CHECK_EQ(!!(fcntl(t.fd, F_GETFL) & O_DIRECT), t.direct);
	CHECK_EQ(pread(t.fd, buf, t.offset_align, t.offset_align), t.offset_align);
	CHECK(pattern_is(buf, t.offset_align, t.offset_align, 0));
	if (t.direct)
		CHECK_EQ(fcntl(t.fd_buffered, F_GETFL) & O_DIRECT, 0);
	io_target_close(&t);
	unlink(path);
	free(buf);
}

static void learning_changes_nothing(void)
{
	uint8_t *buf = pages(FILE_SIZE);
	struct stat before, after;

	scratch_file(path, false);
	CHECK_EQ(stat(path, &before), 0);
	CHECK_EQ(io_target_open(&t, path, false), 0);
	io_target_close(&t);
	CHECK_EQ(stat(path, &after), 0);
	CHECK_EQ(after.st_size, before.st_size);
	CHECK_EQ(after.st_blocks, before.st_blocks);
	file_read(path, buf, FILE_SIZE, 0);
	CHECK(pattern_is(buf, FILE_SIZE, 0, 0));
	unlink(path);
	free(buf);
}

static void descriptors_do_not_survive_exec(void)
{
	scratch_file(path, false);
	CHECK_EQ(io_target_open(&t, path, false), 0);
	CHECK(fcntl(t.fd, F_GETFD) & FD_CLOEXEC);
	CHECK(t.fd_buffered < 0 || (fcntl(t.fd_buffered, F_GETFD) & FD_CLOEXEC));
	io_target_close(&t);
	unlink(path);
}

static void the_size_follows_the_file(void)
{
	scratch_file(path, false);
	CHECK_EQ(io_target_open(&t, path, false), 0);
	CHECK_EQ(io_target_size(&t), FILE_SIZE);
	CHECK_EQ(truncate(path, 3 * FILE_SIZE), 0);
	CHECK_EQ(io_target_size(&t), 3 * FILE_SIZE);
	CHECK_EQ(t.size, FILE_SIZE); /* constant after open */
	io_target_close(&t);
	unlink(path);
}

static void an_empty_file_can_be_opened(void)
{
	scratch_path(path, false);
	CHECK_EQ(io_target_open(&t, path, false), 0);
	CHECK_EQ(t.size, 0);
	io_target_close(&t);
	unlink(path);
}

static void read_only_offers_nothing_that_writes(void)
{
	scratch_file(path, false);
	CHECK_EQ(chmod(path, 0400), 0);
	CHECK_EQ(io_target_open(&t, path, true), 0);
	CHECK(t.read_only);
	CHECK_EQ(fcntl(t.fd, F_GETFL) & O_ACCMODE, O_RDONLY);
	CHECK_EQ(t.discard_max, 0);
	CHECK_EQ(t.write_zeroes_max, 0);
	io_target_close(&t);
	unlink(path);
}

static void what_is_neither_file_nor_block_device_is_named_so(void)
{
	CHECK_EQ(io_target_open(&t, "/", false), -EISDIR);
	CHECK_EQ(io_target_open(&t, "/", true), -EISDIR);
	CHECK_EQ(io_target_open(&t, "/dev/null", false), -ENOTBLK);
	CHECK_EQ(io_target_open(&t, "/nonexistent/disk", false), -ENOENT);
	CHECK_EQ(t.fd, -1);
	CHECK_EQ(t.fd_buffered, -1);
}

static void a_fifo_does_not_block_the_opener(void)
{
	scratch_path(path, false);
	unlink(path);
	CHECK_EQ(mkfifo(path, 0600), 0);
	CHECK_EQ(io_target_open(&t, path, true), -ENOTBLK);
	unlink(path);
}

static void the_null_target_has_a_size_and_no_descriptor(void)
{
	io_target_null(&t, 7 * MIB);
	CHECK_EQ(t.fd, -1);
	CHECK_EQ(io_target_size(&t), 7 * MIB);
	CHECK_EQ(t.logical_block, 512);
	io_target_close(&t);
}

static void engines_are_chosen_by_name_and_depth(void)
{
	struct io_engine *e = NULL;

	io_target_null(&t, MIB);
	CHECK_EQ(io_engine_create(&e, "no such engine", &t, 1), -EINVAL);
	CHECK_EQ(io_engine_create(&e, "null", &t, 0), -EINVAL);
	CHECK_EQ(io_engine_create(&e, "null", &t, 65537), -EINVAL);
	CHECK_EQ(io_engine_create(&e, "null", &t, 65536), 0);
	CHECK(!strcmp(e->ops->name, "null"));
	io_engine_destroy(e);
}

int main(void)
{
	RUN(a_file_is_512_byte_blocks_whatever_it_lies_on);
	RUN(alignments_are_powers_of_two_that_a_read_proves);
	RUN(learning_changes_nothing);
	RUN(descriptors_do_not_survive_exec);
	RUN(the_size_follows_the_file);
	RUN(an_empty_file_can_be_opened);
	RUN(read_only_offers_nothing_that_writes);
	RUN(what_is_neither_file_nor_block_device_is_named_so);
	RUN(a_fifo_does_not_block_the_opener);
	RUN(the_null_target_has_a_size_and_no_descriptor);
	RUN(engines_are_chosen_by_name_and_depth);
	return 0;
}
