// SPDX-License-Identifier: Apache-2.0
/*
 * aio.c - Linux AIO: one io_submit(2) for a batch, completions reaped from the ring that the kernel maps into us
 *
 * io_setup(2) returns the address of a ring of io_events in our memory (aio_ring.h). No system call is needed to collect,
 * as long as nobody takes events with io_getevents(2). A kernel whose ring looks different is asked by io_getevents(2).
 *
 * Signals: an iocb with IOCB_FLAG_RESFD writes our eventfd when it completes, so that a sleeping worker wakes. It is left out
 * where it is only cost (aio_learn.c). A kernel that polls for us wakes whoever watches the ring's tail
 * (io_engine_ring_wakes()): then no iocb has the flag.
 *
 * Polling ("aio_iopoll"): where such a kernel knows IOCB_FLAG_HIPRI, reads and writes raise no interrupt. It looks for them
 * while it looks at the tail, and for who sleeps. A worker that has too much else to do to wait looks itself now and then.
 * What it can't poll for it answers with -EAGAIN: that is submitted again at once, and raises an interrupt.
 *
 * Blocking: with RWF_NOWAIT the kernel answers -EAGAIN instead of blocking in io_submit(2). Direct I/O is then submitted
 * again without that flag by a helper thread: what blocks is the submission (a write into a hole allocates), and the
 * transfer itself stays asynchronous; carried out with pwrite(2) there, writes to a sparse file would hold the inode's
 * lock one after the other. What goes through the page cache is carried out by the helper. Without RWF_NOWAIT, direct I/O
 * may block for a moment (allocation, tags), which is accepted; the page cache would block for as long as the disk takes,
 * so there the helper does it all.
 */
#include <errno.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "aio.h"
#include "helper.h"

#define REAPS_PER_LOOK 64 /* until we look into the poll queues ourselves */

/* Fill the iocb and put it in line. There is room: staged < depth. */
static void aio_stage(struct aio *a, struct io_req *r)
{
	static const uint16_t opcode[2][2] = {
		[IO_READ] = { IOCB_CMD_PREADV, IOCB_CMD_PREAD },
		[IO_WRITE] = { IOCB_CMD_PWRITEV, IOCB_CMD_PWRITE },
	};
	bool one = r->iovcnt == 1; /* spares the kernel copying an iovec */

	r->iocb = (struct iocb){
		.aio_data = (uintptr_t)r,
		.aio_rw_flags = a->nowait[r->op] | (r->flags & IO_F_DSYNC ? RWF_DSYNC : 0),
		.aio_lio_opcode = opcode[r->op][one],
		.aio_fildes = (uint32_t)a->engine.target->fd,
		.aio_buf = one ? (uintptr_t)r->iov->iov_base : (uintptr_t)r->iov,
		.aio_nbytes = one ? r->iov->iov_len : r->iovcnt,
		.aio_offset = (int64_t)r->offset,
		.aio_flags = aio_flags(a, r, a->iocb_flags),
		.aio_resfd = (uint32_t)a->event_fd,
	};
	a->iocbs[a->staged++] = &r->iocb;
}

static void aio_line_up(struct aio *a, struct io_req *r)
{
	if (likely(a->staged < a->depth))
		aio_stage(a, r);
	else
		io_list_push(&a->waiting, r);
}

static void aio_queue(struct io_engine *e, struct io_req *r)
{
	struct aio *a = container_of(e, struct aio, engine);

	r->done = 0;
	r->in_helper = r->resubmit = r->unpolled = false;
	if (unlikely((a->helper_ops >> r->op) & 1) || unlikely(io_range_misaligned(e->target, r->offset, r->len)) ||
	    unlikely(io_iov_misaligned(e->target, r->iov, r->iovcnt)) ||
	    /* generic_write_sync() would wait for the disk inside io_submit() */
	    unlikely((r->flags & IO_F_DSYNC) && !e->target->direct))
		io_helper_queue(e->helper, r);
	else
		aio_line_up(a, r);
}

/* An event that is not simply "all of it". Return: whether the request is finished, else it is in line again, or the helper's */
static bool aio_unusual(struct aio *a, struct io_req *r, int64_t res)
{
	bool direct = a->engine.target->direct, nowait = r->iocb.aio_rw_flags & RWF_NOWAIT;

	if (r->iocb.aio_flags & IOCB_FLAG_HIPRI && (res == -EAGAIN || res == -EOPNOTSUPP)) {
		if (res == -EOPNOTSUPP)
			aio_forget_polling(a);
		aio_queues(a);
		r->unpolled = true;
		aio_line_up(a, r);
		return false;
	}
	if (res == -EOPNOTSUPP && nowait) {
		aio_forget_nowait(a, r->op);
	} else if (res < 0 && res != -EAGAIN && res != -EINTR && !(res == -EINVAL && direct)) {
		r->res = (int32_t)res;
		return true;
	}
	if (res > 0)
		r->done = (uint64_t)res;
	r->resubmit = res == -EAGAIN && nowait && direct;
	if (r->resubmit) {
		aio_queues(a);
		r->iocb.aio_rw_flags &= ~RWF_NOWAIT;
		r->iocb.aio_flags = a->signal & ~(uint32_t)IOCB_FLAG_HIPRI;
	}
	io_helper_queue(a->engine.helper, r);
	return false;
}

/* In a helper thread. After a success @r may be reaped at any moment. Return: 0 or -errno */
static int aio_resubmit(struct io_engine *e, struct io_req *r)
{
	struct aio *a = container_of(e, struct aio, engine);
	struct iocb *iocb = &r->iocb;

	return syscall(SYS_io_submit, a->ctx, 1L, &iocb) == 1 ? 0 : -EAGAIN;
}

/* How a request ended: with all of it, or not simply so. Return: whether it is finished, else the helper has it */
static inline bool aio_result(struct aio *a, struct io_req *r, int64_t res)
{
	if (unlikely(res != (int64_t)r->len))
		return aio_unusual(a, r, res);
	r->res = 0;
	return true;
}

/* There is room again: whoever waits for it moves up. */
static void aio_refill(struct aio *a)
{
	while (unlikely(a->waiting.first) && a->staged < a->depth)
		aio_stage(a, io_list_pop(&a->waiting));
	a->engine.held = a->staged;
}

static int aio_submit(struct io_engine *e)
{
	struct aio *a = container_of(e, struct aio, engine);
	unsigned n = a->staged, sent = 0, redirected = 0;

	if (!n)
		return 0;
	do {
		long ret = syscall(SYS_io_submit, a->ctx, (long)(n - sent), a->iocbs + sent);

		count_add(&e->stats.submits, 1);
		if (likely(ret > 0)) {
			sent += (unsigned)ret;
		} else if (ret == 0 || errno == EAGAIN) {
			break; /* out of kernel resources: the rest stays staged */
		} else {
			/* The first one is refused; the helper does it, or finds the same error and answers with it. */
			struct io_req *r = (struct io_req *)(uintptr_t)a->iocbs[sent]->aio_data;

			if (errno == EOPNOTSUPP && (r->iocb.aio_rw_flags & RWF_NOWAIT))
				aio_forget_nowait(a, r->op);
			io_helper_queue(e->helper, r);
			sent++;
			redirected++;
		}
	} while (unlikely(sent < n));

	a->staged = n - sent;
	if (unlikely(a->staged))
		memmove(a->iocbs, a->iocbs + sent, a->staged * sizeof(a->iocbs[0]));
	a->in_kernel += sent - redirected;
	if (likely(sent > redirected))
		aio_learn(a, sent - redirected);
	aio_refill(a);
	return (int)sent;
}

/* Return: 1 if the event finishes its request, stored in @done */
static inline unsigned aio_event(struct aio *a, const struct io_event *ev, struct io_req **done)
{
	struct io_req *r = (struct io_req *)(uintptr_t)ev->data;

	if (unlikely(a->engine.unsignalled) && !(r->iocb.aio_flags & IOCB_FLAG_RESFD))
		a->engine.unsignalled--;
	if (unlikely(r->in_helper)) {
		r->in_helper = false;
		io_helper_left(a->engine.helper, &a->engine.stats);
	} else {
		a->in_kernel--;
	}
	*done = r;
	return aio_result(a, r, ev->res);
}

static unsigned aio_reap_ring(struct aio *a, struct io_req **done, unsigned max)
{
	struct aio_ring *ring = a->ring;
	/* Pairs with the kernel's smp_wmb() between the event and the tail, in aio_complete(). */
	unsigned head = ring->head, tail = load_acquire(&ring->tail), n = 0;

	if (head == tail)
		return 0;
	while (head != tail && n < max) {
		n += aio_event(a, &ring->events[head], &done[n]);
		head = head + 1 == ring->nr ? 0 : head + 1;
	}
	/* The events are read: the kernel, which loads head before it reuses their places, may have them. */
	store_release(&ring->head, head);
	return n;
}

static unsigned aio_reap_syscall(struct aio *a, struct io_req **done, unsigned max)
{
	struct io_event events[64];
	struct timespec none = { 0 };
	long got = syscall(SYS_io_getevents, a->ctx, 0L, (long)(max < 64 ? max : 64), events, &none);
	unsigned n = 0;

	for (long i = 0; i < got; i++)
		n += aio_event(a, &events[i], &done[n]);
	return n;
}

static unsigned aio_reap(struct io_engine *e, struct io_req **done, unsigned max)
{
	struct aio *a = container_of(e, struct aio, engine);
	struct timespec none = { 0 };
	unsigned n = 0, staged = a->staged;

	/* Not only in vain ones: events may come by interrupt, as the kernel decides, while another waits for a look. */
	if (a->signal == IOCB_FLAG_HIPRI && a->in_kernel && unlikely(++a->reaps > REAPS_PER_LOOK)) {
		a->reaps = 0;
		syscall(SYS_io_getevents, a->ctx, 0L, 0L, NULL, &none); /* looks, and takes nothing */
	}
	if (a->in_kernel || io_helper_busy(e->helper))
		n = likely(a->ring) ? aio_reap_ring(a, done, max) : aio_reap_syscall(a, done, max);
	if (unlikely(a->staged > staged))
		aio_submit(e); /* its owner may go to sleep now */
	if (unlikely(e->unsignalled) && !a->in_kernel)
		e->unsignalled = 0; /* it counted a few too many, if some with RESFD were not reaped when it was set */
	n += io_helper_reap(e->helper, done + n, max - n, &e->stats);
	count_add(&e->stats.completions, n);
	return n;
}

static int aio_wait_fd(struct io_engine *e)
{
	return container_of(e, struct aio, engine)->event_fd;
}

static void aio_wait_word(struct io_engine *e, struct eventfd_poll_info *word)
{
	struct aio_ring *ring = container_of(e, struct aio, engine)->ring;

	*word = (struct eventfd_poll_info){ .op = EVENTFD_POLL_OP_NONE };
	if (ring)
		*word = (struct eventfd_poll_info){
			.addr = (uintptr_t)&ring->tail,
			.size = sizeof(ring->tail),
			.op = EVENTFD_POLL_OP_NOT_EQUAL_PTR,
			.val = (uintptr_t)&ring->head, /* ours alone to move */
		};
}

static void aio_ring_wakes(struct io_engine *e)
{
	struct aio *a = container_of(e, struct aio, engine);

	a->signal = a->iocb_flags = a->iopoll ? IOCB_FLAG_HIPRI : 0;
}

static void aio_destroy(struct io_engine *e)
{
	struct aio *a = container_of(e, struct aio, engine);

	io_helper_destroy(e->helper);
	if (a->ctx)
		syscall(SYS_io_destroy, a->ctx);
	if (a->event_fd >= 0)
		close(a->event_fd);
	free(a);
}

static const struct io_ops aio_ops = {
	.name = "aio",
	.queue = aio_queue,
	.submit = aio_submit,
	.reap = aio_reap,
	.wait_fd = aio_wait_fd,
	.wait_word = aio_wait_word,
	.ring_wakes = aio_ring_wakes,
	.destroy = aio_destroy,
};

static int aio_open(struct aio *a, struct io_target *t)
{
	int ret = io_helper_create(&a->engine.helper, t);

	if (ret)
		return ret;
	io_helper_submitter(a->engine.helper, aio_resubmit, &a->engine);
	/* Never read: edge-triggered waiters need none, and 2^64 - 2 completions without one are out of reach. */
	a->event_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	if (a->event_fd < 0)
		return -errno;
	/* The kernel doubles nr_events by itself, for what its per-CPU counters may hold back; more gained nothing. */
	if (syscall(SYS_io_setup, a->depth, &a->ctx) < 0)
		return -errno;
	a->ring = aio_ring_of(a->ctx);
	return a->iopoll && !aio_ring_polls(a->ring) ? -EOPNOTSUPP : 0;
}

static int create(struct io_engine **out, struct io_target *t, uint32_t depth, bool iopoll)
{
	struct aio *a = calloc(1, sizeof(*a) + depth * sizeof(a->iocbs[0]));
	int ret;

	if (!a)
		return -ENOMEM;
	a->engine = (struct io_engine){ .ops = &aio_ops, .target = t };
	a->iopoll = iopoll;
	a->event_fd = -1;
	a->depth = depth;
	a->signal = a->iocb_flags = IOCB_FLAG_RESFD;
	a->helper_ops = 1u << IO_FLUSH | 1u << IO_DISCARD | 1u << IO_WRITE_ZEROES;
	for (unsigned op = IO_READ; op <= IO_WRITE; op++) {
		a->nowait[op] = RWF_NOWAIT;
		if (!t->nowait)
			aio_forget_nowait(a, op);
	}
	ret = aio_open(a, t);
	if (ret) {
		aio_destroy(&a->engine);
		return ret;
	}
	*out = &a->engine;
	return 0;
}

int aio_create(struct io_engine **out, struct io_target *t, uint32_t depth)
{
	return create(out, t, depth, false);
}

int aio_iopoll_create(struct io_engine **out, struct io_target *t, uint32_t depth)
{
	return create(out, t, depth, true);
}
