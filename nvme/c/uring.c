// SPDX-License-Identifier: Apache-2.0
/*
 * uring.c - io_uring: plain, where completions come by interrupt; and with a second ring, whose completions are polled for
 *
 * Plain: the kernel punts what would block to its own threads.
 *
 * IOPOLL ("io_uring_iopoll"): reads and writes of a block device with poll queues raise no interrupt; the kernel looks
 * into the device's completion queue whenever somebody enters the ring and asks for events. Nothing else finds them: the
 * ring has no eventfd, can't be polled, and its tail doesn't move by itself. So while any of these is in flight
 * (`polled`), the engine's owner submits again and again, which looks, and sleeps no longer than it chooses to.
 * That ring takes nothing but reads and writes. What the kernel would have to cut in pieces, or has no free request of the
 * device's for, it doesn't poll for: -EAGAIN. With RWF_NOWAIT we are told; without, a thread of the kernel's would try it
 * again without end (Linux 6.1, io_wq_submit_work()), and what must be cut never succeeds. It goes to the plain ring, as does
 * everything once the device says that it can't be polled any more (its driver came back without poll queues, or a layer
 * above it doesn't know RWF_NOWAIT).
 *
 * A discard of a block device is a command of the plain ring, where the kernel has it (Linux 6.12). Whether it does only
 * such a command tells: the first one that it refuses goes to the helper, and so do all others, until the disk is another one.
 * Flush and write zeroes are the helper's in any case.
 */
#include <errno.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "../../kernel/c/signal_fd.h"
#include "helper.h"
#include "uring_buffers.h"
#include "uring_ring.h"

struct uring {
	struct io_engine engine;
	struct uring_ring plain, polled;
	bool polls;       /* the polled ring is to be used */
	bool discards;    /* the plain ring is to be used for discards */
	bool may_discard; /* that is worth a try, with any disk */
	int event_fd;
	struct uring_buffers
		*buffers; /* registered with the ring that reads and writes go to first; NULL: none ever were */
};

/* Nothing of no length: the kernel would call it invalid. */
static bool can_discard(const struct uring *u, const struct io_req *r)
{
	const uint64_t below_block = u->engine.target->logical_block - 1;

	return u->discards && r->op == IO_DISCARD && r->len && !((r->offset | r->len) & below_block);
}

static void uring_queue(struct io_engine *e, struct io_req *r)
{
	struct uring *u = container_of(e, struct uring, engine);

	r->done = 0;
	r->in_helper = false;
	if (unlikely(r->op > IO_WRITE) && can_discard(u, r))
		uring_ring_stage(&u->plain, r);
	else if (unlikely(r->op > IO_WRITE) || unlikely(r->len > INT32_MAX) || /* sqe->len, cqe->res */
		 unlikely(io_range_misaligned(e->target, r->offset, r->len)) ||
		 unlikely(io_iov_misaligned(e->target, r->iov, r->iovcnt)))
		io_helper_queue(e->helper, r);
	else if (u->polls && io_in_one_piece(e->target, r))
		uring_ring_stage(&u->polled, r);
	else
		uring_ring_stage(&u->plain, r);
}

static int uring_submit(struct io_engine *e)
{
	struct uring *u = container_of(e, struct uring, engine);
	unsigned before = uring_ring_held(&u->plain);

	if (before)
		uring_ring_submit(&u->plain, &e->stats);
	e->held = uring_ring_held(&u->plain);
	if (u->polled.open) {
		before += uring_ring_held(&u->polled);
		uring_ring_submit(&u->polled, &e->stats);
		e->held += uring_ring_held(&u->polled);
		e->polled = u->polled.in_kernel;
	}
	return (int)(before - e->held);
}

/*
 * Is a discard that the ring didn't carry out the helper's? -EOPNOTSUPP is said by kernels that have no such command, -EACCES or
 * -EPERM by security modules (security_uring_cmd), -EBUSY where somebody uses the range through the page cache, which BLKDISCARD drops.
 */
static bool discards_otherwise(struct uring *u, int res)
{
	if (res == -EOPNOTSUPP || res == -EACCES || res == -EPERM) {
		u->discards = false;
		return true;
	}
	return res == -EBUSY || res == -EAGAIN || res == -EINTR || res == -EINVAL;
}

/* What a completion with this result leaves undone: does somebody else have it now? */
static bool handed_on(struct uring *u, const struct uring_ring *ring, struct io_req *r, int res)
{
	if (r->op == IO_DISCARD) {
		if (!discards_otherwise(u, res))
			return false;
	} else if (ring->polled && (res == -EOPNOTSUPP || res == -EAGAIN)) {
		if (res == -EOPNOTSUPP && u->polls) {
			u->polls = false;
			signal_fd(u->engine.target->unpolled_fd);
		}
		uring_ring_stage(&u->plain, r);
		return true;
	} else if (res < 0 && res != -EAGAIN && res != -EINTR && res != -EINVAL) {
		return false;
	}
	r->done = res > 0 ? (uint64_t)res : 0;
	io_helper_queue(u->engine.helper, r);
	return true;
}

/* Return: 1 if the completion finishes its request, stored in @done; else somebody else has it now */
static unsigned uring_event(struct uring *u, const struct uring_ring *ring, const struct io_uring_cqe *cqe,
			    struct io_req **done)
{
	struct io_req *r = io_uring_cqe_get_data(cqe);
	int res = cqe->res;

	if (unlikely((uint32_t)res != r->len || res < 0) && !(res == 0 && r->op == IO_DISCARD) &&
	    handed_on(u, ring, r, res))
		return 0;
	r->res = res < 0 ? res : 0;
	*done = r;
	return 1;
}

static unsigned reap_ring(struct uring *u, struct uring_ring *ring, struct io_req **done, unsigned max)
{
	struct io_uring_cqe *cqe;
	unsigned head, events = 0, n = 0;

	io_uring_for_each_cqe(&ring->ring, head, cqe)
	{
		if (n == max)
			break;
		n += uring_event(u, ring, cqe, &done[n]);
		events++;
	}
	if (events)
		io_uring_cq_advance(&ring->ring, events);
	ring->in_kernel -= events;
	return n;
}

static unsigned uring_reap(struct io_engine *e, struct io_req **done, unsigned max)
{
	struct uring *u = container_of(e, struct uring, engine);
	unsigned n = reap_ring(u, &u->plain, done, max);

	if (u->polled.open) {
		n += reap_ring(u, &u->polled, done + n, max - n);
		e->polled = u->polled.in_kernel;
		/* What can't be polled for any more was staged anew: it mustn't be slept over. */
		e->held = uring_ring_held(&u->plain) + uring_ring_held(&u->polled);
	}
	n += io_helper_reap(e->helper, done + n, max - n, &e->stats);
	count_add(&e->stats.completions, n);
	return n;
}

static int uring_wait_fd(struct io_engine *e)
{
	return container_of(e, struct uring, engine)->event_fd;
}

static void uring_wait_word(struct io_engine *e, struct eventfd_poll_info *word)
{
	struct io_uring *ring = &container_of(e, struct uring, engine)->plain.ring;

	*word = (struct eventfd_poll_info){
		.addr = (uintptr_t)ring->cq.ktail,
		.size = sizeof(*ring->cq.ktail),
		.op = EVENTFD_POLL_OP_NOT_EQUAL_PTR,
		.val = (uintptr_t)ring->cq.khead, /* ours alone to move */
	};
}

/* The registered file is the old one for as long as nobody says otherwise. */
static void uring_reopened(struct io_engine *e)
{
	struct uring *u = container_of(e, struct uring, engine);

	/* Should it fail, requests go on failing, which is what they did. */
	io_uring_register_files_update(&u->plain.ring, 0, &e->target->fd, 1);
	if (u->polled.open)
		io_uring_register_files_update(&u->polled.ring, 0, &e->target->fd, 1);
	u->polls = u->polled.open; /* where its driver has no poll queues now, the first request tells */
	u->discards = u->may_discard;
}

static int uring_pin(struct io_engine *e, const struct iovec *memory, unsigned count)
{
	struct uring *u = container_of(e, struct uring, engine);
	struct uring_ring *ring = u->polled.open ? &u->polled : &u->plain;
	int ret;

	if (!u->buffers) {
		u->buffers = malloc(sizeof(*u->buffers));
		if (!u->buffers)
			return -ENOMEM;
		ret = uring_buffers_init(u->buffers, &ring->ring);
		if (ret < 0) {
			free(u->buffers);
			u->buffers = NULL;
			return ret;
		}
	}
	ring->buffers = u->buffers;
	return uring_buffers_set(u->buffers, &ring->ring, memory, count);
}

static void uring_destroy(struct io_engine *e)
{
	struct uring *u = container_of(e, struct uring, engine);

	io_helper_destroy(e->helper);
	uring_ring_close(&u->plain);
	uring_ring_close(&u->polled);
	if (u->event_fd >= 0)
		close(u->event_fd);
	free(u->buffers);
	free(u);
}

static const struct io_ops uring_ops = {
	.name = "io_uring",
	.queue = uring_queue,
	.submit = uring_submit,
	.reap = uring_reap,
	.wait_fd = uring_wait_fd,
	.wait_word = uring_wait_word,
	.reopened = uring_reopened,
	.pin = uring_pin,
	.destroy = uring_destroy,
};

static int uring_open(struct uring *u, struct io_target *t, uint32_t depth, bool polls)
{
	int ret = io_helper_create(&u->engine.helper, t);

	if (ret)
		return ret;
	u->event_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC); /* never read, as in aio.c */
	if (u->event_fd < 0)
		return -errno;
	ret = uring_ring_open(&u->plain, t, depth, 0);
	if (!ret)
		ret = io_uring_register_eventfd(&u->plain.ring, u->event_fd);
	u->may_discard = !ret && t->block_device && uring_ring_knows(&u->plain, IORING_OP_URING_CMD);
	u->discards = u->may_discard;
	if (!ret && polls)
		ret = uring_ring_open(&u->polled, t, depth, IORING_SETUP_IOPOLL);
	u->polls = !ret && polls;
	return ret;
}

static int create(struct io_engine **out, struct io_target *t, uint32_t depth, bool polls)
{
	struct uring *u = calloc(1, sizeof(*u));
	int ret;

	if (!u)
		return -ENOMEM;
	u->engine = (struct io_engine){ .ops = &uring_ops, .target = t };
	u->event_fd = -1;
	ret = uring_open(u, t, depth, polls);
	if (ret) {
		uring_destroy(&u->engine);
		return ret;
	}
	*out = &u->engine;
	return 0;
}

int uring_create(struct io_engine **out, struct io_target *t, uint32_t depth)
{
	return create(out, t, depth, false);
}

int uring_iopoll_create(struct io_engine **out, struct io_target *t, uint32_t depth)
{
	return create(out, t, depth, true);
}
