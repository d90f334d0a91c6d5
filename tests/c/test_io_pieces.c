// SPDX-License-Identifier: Apache-2.0
/*
 * test_io_pieces.c - what a device doesn't take at once, and more than it has room for, with each engine
 *
 * Polled I/O is refused there (-EAGAIN), and has to be done without polling. KPOLL_TEST_DISK names a disk with poll queues,
 * whose contents go; without it's a file, of which nothing can be polled for.
 */
#include <errno.h>

#include "test_io.h"

static struct io_engine *e;
static struct io_target t;
static char path[PATH_MAX];

/* Nobody waits: whatever is polled for has to be found by the engine itself. */
static int spun(struct io_req *r)
{
	struct io_req *done[1];

	io_queue(e, r);
	do
		io_submit_all(e);
	while (!io_reap(e, done, 1));
	CHECK(done[0] == r);
	return r->res;
}

static int spun_rw(enum io_op op, void *buf, size_t len, uint64_t offset)
{
	struct iovec iov = { buf, len };
	struct io_req r = { .op = op, .iov = &iov, .iovcnt = 1, .offset = offset, .len = len };

	return spun(&r);
}

/* NVMe's lists of pages can't have gaps: pieces that begin and end inside pages are commands of their own. */
static void pieces_with_gaps_between_them_are_served(void)
{
	uint8_t *buf = pages(64 * KIB), *wanted = pages(4 * KIB);
	struct iovec gaps[2] = { { buf + 512, 512 }, { buf + 8 * KIB + 1024, 512 } };
	struct io_req r = { .op = IO_READ, .iov = gaps, .iovcnt = 2, .offset = MIB, .len = 1024 };

	pattern_fill(wanted, 4 * KIB, MIB, 11);
	CHECK_EQ(spun_rw(IO_WRITE, wanted, 4 * KIB, MIB), 0);
	CHECK_EQ(spun(&r), 0);
	CHECK(pattern_is(buf + 512, 512, MIB, 11));
	CHECK(pattern_is(buf + 8 * KIB + 1024, 512, MIB + 512, 11));
	free(buf);
	free(wanted);
}

static void what_is_longer_than_a_request_of_the_devices_is_served(void)
{
	uint8_t *buf = pages(MIB);

	pattern_fill(buf, MIB, MIB, 12);
	CHECK_EQ(spun_rw(IO_WRITE, buf, MIB, MIB), 0);
	memset(buf, 0, MIB);
	CHECK_EQ(spun_rw(IO_READ, buf, MIB, MIB), 0);
	CHECK(pattern_is(buf, MIB, MIB, 12));
	free(buf);
}

static void what_the_device_has_no_room_for_is_served(void)
{
	enum { MANY = 2000 };
	static struct iovec iov[MANY];
	static struct io_req r[MANY];
	uint8_t *buf = pages(4 * KIB);
	struct io_req *done[64];
	unsigned n = 0;

	for (unsigned i = 0; i < MANY; i++) {
		iov[i] = (struct iovec){ buf, 4 * KIB };
		r[i] = (struct io_req){
			.op = IO_READ, .iov = &iov[i], .iovcnt = 1, .offset = i * 4 * KIB % MIB, .len = 4 * KIB
		};
		io_queue(e, &r[i]);
	}
	while (n < MANY) {
		io_submit_all(e);
		n += io_reap(e, done, 64);
	}
	for (unsigned i = 0; i < MANY; i++)
		CHECK_EQ(r[i].res, 0);
	free(buf);
}

static void served_by(const char *engine)
{
	int ret = io_engine_create(&e, engine, &t, 2048);

	if (ret == -ENOSYS || ret == -EPERM || ret == -EOPNOTSUPP) {
		printf("skip: %s: %s here\n", engine, strerror(-ret));
		return;
	}
	CHECK_EQ(ret, 0);
	if (!strcmp(engine, "aio_iopoll"))
		io_engine_ring_wakes(e); /* as under the kernel that polls: no signals, but polling */
	printf("# %s on %s (polls %d)\n", engine, path, t.polls);
	RUN(pieces_with_gaps_between_them_are_served);
	RUN(what_is_longer_than_a_request_of_the_devices_is_served);
	RUN(what_the_device_has_no_room_for_is_served);
	CHECK_EQ(e->in_flight, 0);
	CHECK_EQ(e->held, 0);
	io_engine_destroy(e);
}

int main(void)
{
	static const char *const engines[] = { "aio", "aio_iopoll", "io_uring", "io_uring_iopoll" };
	bool ours = disk_or_scratch_file(path);

	CHECK_EQ(io_target_open(&t, path, false), 0);
	for (unsigned i = 0; i < 4; i++)
		served_by(engines[i]);
	io_target_close(&t);
	if (ours)
		unlink(path);
	return 0;
}
